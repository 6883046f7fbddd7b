"""What a member of the fleet goes through, from its start until something is wrong with it.

    starting --placed, started--> serving                                    scorers, perturbers
    starting --placed, started--> joining --proved the newest--> serving     generators
                     \\-> standby --promoted--/      ^                 |
                                                    \\-- new attempt --/

`Lives.live` returns only by an exception that says why the member must be replaced. Whoever made the member
sees to that. All waits have deadlines, but that for a place while others of the role serve: a cluster may be
full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from actors.nodes import Nodes
from actors.pool import Member, Pool
from actors.remote import named, reach
from pipelines.journal import Journal
from pipelines.loop import RoleFailed
from pipelines.types import Canary, Proof

T = TypeVar("T")

POLL_S = 10.0  # one question to the publisher; without an answer it is asked again
LOOK_S = 0.25  # between two looks for the place of a member that starts
STOP_S = 5.0  # that an engine gets to end
# The weights did not arrive, and the member still holds its old ones: the publisher is asked again.
CUT = ("transfer_cut", "object_lost", "owner_died")
CUTS = 5  # of one version, then the member is replaced


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds. `adopt`: one weight version, which drains, loads and proves; also a leaver's last requests."""

    health: float
    progress: float
    start: float
    adopt: float

    @property
    def period(self) -> float:
        """Between two questions after a member's health."""
        return min(1.0, self.health / 4, self.progress / 4)


@dataclass(eq=False)
class Attachment:
    """A publisher for as long as its attempt lasts."""

    publisher: Any
    over: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    failure: RoleFailed | None = None  # of the publisher


class Lives:
    """Leads the lives of all members. Proofs go to `journal`."""

    def __init__(
        self, nodes: Nodes, canaries: Sequence[Canary], deadlines: Deadlines, journal: Journal
    ) -> None:
        self._nodes, self._canaries, self._journal = nodes, canaries, journal
        self.deadlines = deadlines
        self.attachment: Attachment | None = None
        self._attached = asyncio.Event()

    def attach(self, publisher: Any) -> None:
        if self.attachment is not None:
            self.attachment.over.set()
        self.attachment = Attachment(publisher)
        self._attached.set()

    async def live(self, pool: Pool, member: Member) -> None:
        """Raises RoleFailed: why the member is lost."""
        await self._place(pool, member)
        if member.role == "generator":
            await within(self.deadlines.start, member, member.remote.start(self._canaries), "start")
        await first_of(self._watch(member), self._work(pool, member))

    async def drain(self, member: Member) -> None:
        """Wait until a leaver has no request left, then let it clean up. Never raises."""
        until = time.monotonic() + self.deadlines.adopt
        quiet = 0  # looks in a row without a request: the next one of a group comes soon after the last
        with suppress(Exception):
            while quiet < 2 and time.monotonic() < until:
                health = await self._health(member)
                member.in_flight = int(health["in_flight"])
                quiet = 0 if member.in_flight else quiet + 1
                await asyncio.sleep(self.deadlines.period)
        await self.farewell(member)

    async def farewell(self, member: Member) -> None:
        """Let a generator end its engine and remove its files. Never raises."""
        if member.role == "generator" and member.state != "starting":
            with suppress(Exception):
                await asyncio.wait_for(member.remote.stop(), STOP_S)

    # -- stretches of a life --------------------------------------------------------------------------------

    async def _place(self, pool: Pool, member: Member) -> None:
        """Wait until the member's process runs and answers."""
        answer = asyncio.ensure_future(member.remote.health())
        since = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait({answer}, timeout=LOOK_S)
                if member.place is None:
                    with suppress(Exception):  # Ray's head may be busy
                        member.place = await asyncio.to_thread(self._nodes.find, member.handle)
                    if member.place is not None or pool.among("serving"):
                        since = time.monotonic()  # the run goes on while there is no room for one more
                if done:
                    return await within(0, member, answer, "answer")
                if time.monotonic() - since > self.deadlines.start:
                    what = "its process did not answer" if member.place else "no node had room for it"
                    raise RoleFailed("timeout", member.name, f"{what} within {self.deadlines.start:g} s")
        finally:
            answer.cancel()

    async def _work(self, pool: Pool, member: Member) -> None:
        if member.role != "generator":
            pool.move(member, "serving", "answers")
            await asyncio.Event().wait()
        if member.spare:
            pool.move(member, "standby", "started")
            await member.promoted.wait()
        pool.move(member, "joining", "started")
        while True:
            await self._attached.wait()
            assert self.attachment is not None
            attachment = self.attachment
            await first_of(attachment.over.wait(), self._follow(pool, member, attachment))

    async def _follow(self, pool: Pool, member: Member, attachment: Attachment) -> None:
        """Adopt the newest version, then all later ones in their order."""
        publisher = reach(attachment.publisher, "publisher", POLL_S + self.deadlines.health)
        held, member.reference = member.reference, 0  # an earlier publisher's
        cuts = 0
        while not attachment.over.is_set():
            try:
                after = member.version if member.version >= 0 else await publisher.newest() - 1
                got = await publisher.next(after=max(after, -1), timeout_s=POLL_S)
            except Exception as error:
                attachment.failure = named(error, "publisher")
                attachment.lost.set()
                await attachment.over.wait()
                return
            if got is None or attachment.over.is_set():
                continue
            version, [shipment, *reference] = got
            if held and not reference:
                raise RoleFailed("old_reference", member.name, "it has a reference of an earlier attempt")
            try:
                await self._adopt(member, version, shipment, reference)
            except RoleFailed as error:
                if error.reason not in CUT or cuts == CUTS:
                    raise
                cuts += 1
                await asyncio.sleep(0.05 * 2**cuts)
                continue
            cuts = held = 0
            if not attachment.over.is_set():
                member.version = version.number
                pool.move(member, "serving", f"proved version {version.number}")

    async def _adopt(self, member: Member, version: Any, shipment: Any, reference: Sequence[Any]) -> None:
        """Raises RoleFailed when the version is not proved."""
        remote, limit = member.remote, self.deadlines.adopt
        member.adopting = True
        try:
            adopting = remote.adopt(version, shipment)
            proof: Proof = await within(limit, member, adopting, f"adopt version {version.number}")
            self._journal.write("proof", **asdict(proof), holds=proof.holds)
            if cause := proof.detail.get("bytes", {}).get("fell_back"):
                self._journal.write("fell_back", generator=member.name, version=proof.version, cause=cause)
            if not proof.holds:
                raise RoleFailed("unproved", member.name, _unproved(proof))
            if reference and reference[0] != member.reference:
                await within(limit, member, remote.adopt_reference(reference[1]), "adopt a reference")
                member.reference = reference[0]
        finally:
            member.adopting = False
            member.moved = time.monotonic()

    # -- health ---------------------------------------------------------------------------------------------

    async def _watch(self, member: Member) -> None:
        while True:
            self._judge(member, await self._health(member))
            await asyncio.sleep(self.deadlines.period)

    async def _health(self, member: Member) -> Mapping[str, Any]:
        return await within(self.deadlines.health, member, member.remote.health(), "answer")

    def _judge(self, member: Member, health: Mapping[str, Any]) -> None:
        """Raise RoleFailed for a member that does not work or holds weights that it did not prove."""
        now = time.monotonic()
        if not health.get("alive", True):
            raise RoleFailed("engine_died", member.name, "the process answers but its engine has ended")
        if health.get("quarantined") and not member.adopting:
            raise RoleFailed("quarantined", member.name, str(health["quarantined"]))
        progress = health.get("progress", health.get("engine_steps"))
        member.in_flight = int(health["in_flight"])
        member.load = health.get("load", {})
        # Also while it adopts: requests that are inside have to leave before weights can change.
        if progress != member.progress or not member.in_flight:
            member.progress, member.moved = progress, now
        limit = self.deadlines.progress if member.role != "scorer" else self._lease_s
        if now - member.moved > limit:
            detail = f"{member.in_flight} requests under way and no progress for {limit:g} s"
            raise RoleFailed("wedged", member.name, detail)

    @property
    def _lease_s(self) -> float:
        """A scorer waits for generators, and those for whole weight syncs."""
        return self.deadlines.progress + self.deadlines.adopt


def _unproved(proof: Proof) -> str:
    return (
        f"it could not prove weight version {proof.version}: bytes received {proof.bytes_received}, elements "
        f"loaded {proof.elements_loaded}, canary change {proof.canary_change}, caches fresh "
        f"{proof.caches_fresh}; {dict(proof.detail)}"
    )


async def within(limit_s: float, member: Member, work: Awaitable[T], what: str) -> T:
    """Await `work` of a member. Raises RoleFailed, named by its cause or as "wedged"."""
    try:
        return await asyncio.wait_for(work, limit_s)
    except Exception as error:
        if type(error) is TimeoutError:  # of this wait; the member's own comes as a RoleFailed
            detail = f"did not {what} within {limit_s:g} s"
            raise RoleFailed("wedged", member.name, detail) from None
        raise named(error, member.name) from error


async def first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Run all until one ends, then cancel the others; raises what that one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        # Again and again: `wait_for` of Python 3.11 forgets a cancellation that comes with its result.
        while under_way := [task for task in tasks if not task.done()]:
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way, timeout=LOOK_S)
        await asyncio.gather(*tasks, return_exceptions=True)
