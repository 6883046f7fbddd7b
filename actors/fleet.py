"""The fleet: supervised pools of generators, scorers and perturbers that grow and shrink while a run goes on.

1. Who is dead, wedged or holds weights that it cannot prove is killed and replaced; a spare goes first.
2. A generator may sample (`versions`) only from a version of the attached publisher that it has proved.
3. A leaver takes no new work, finishes what it has, and goes.
4. What a pool's size should be follows demand (`pipelines.scaling`), until a user asks for a number.
5. Every change of a member's state is an event `member` of the journal.

The fleet outlives the attempts of a run: `attach` tells it the next publisher.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from actors.lives import Deadlines, Lives, first_of
from actors.nodes import Needs, Nodes
from actors.pool import Member, Pool
from actors.remote import named
from actors.steering import Steering
from pipelines.journal import Journal
from pipelines.loop import RoleFailed, RunFailed
from pipelines.scaling import ROLES, Role, Signals, Sizes
from pipelines.types import Canary, Fault

LOOK_S = 0.05  # between two looks at versions that are waited for


class Makers(Protocol):
    """Starts workers. Returns at once; each call makes a new one."""

    def generator(self, index: int) -> Any: ...
    def scorer(self, index: int) -> Any: ...
    def perturber(self, index: int) -> Any: ...


class Fleet:
    """All members of a run.

    Args:
        canaries: what generators prove weights with.
        health_timeout_s: a member that does not answer for so long is lost.
        progress_timeout_s: so is one that has requests and makes no progress.
        start_timeout_s: from a place on a node to a started member, twice: process, then engine.
        adopt_timeout_s: deadline of one weight version, and of a leaver's last requests.
        folder: of the run, where `status.json` is written and `control/fleet.json` read.
        signals: who waits for whom at the moment.
        facts: what else `status.json` says of the run.
        needs: what members reserve, for the cluster's autoscaler.
    """

    def __init__(
        self,
        makers: Makers,
        sizes: Sizes,
        journal: Journal,
        *,
        health_timeout_s: float,
        progress_timeout_s: float,
        start_timeout_s: float,
        adopt_timeout_s: float,
        canaries: Sequence[Canary] = (),
        folder: Path | None = None,
        signals: Callable[[], Signals] | None = None,
        facts: Callable[[], Mapping[str, Any]] | None = None,
        needs: Needs | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        deadlines = Deadlines(
            health=health_timeout_s,
            progress=progress_timeout_s,
            start=start_timeout_s,
            adopt=adopt_timeout_s,
        )
        self._nodes = nodes or Nodes()
        self._lives = Lives(self._nodes, canaries, deadlines, journal)
        self._pools: dict[Role, Pool] = {
            role: Pool(
                role,
                sizes.role(role),
                sizes.standbys if role == "generator" else 0,
                getattr(makers, role),
                self._record,
            )
            for role in ROLES
        }
        self._steering = Steering(self._pools, self._nodes, journal, folder, signals, facts or dict)
        self._journal, self._needs = journal, needs
        self._began = time.monotonic()
        self._failure: Exception | None = None
        self._failed = asyncio.Event()
        self._starting = self._stopped = False
        self._asked: dict[Role, int] = {}  # of the autoscaler
        self._chores: set[asyncio.Task[Any]] = set()

    # -- what a run asks of it ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring the first members up.

        Raises:
            RoleFailed: one did not start, by its cause. A process that dies is started anew first.
            RunFailed: starts in a row failed.
        """
        self._starting = True
        self._reconcile()

        async def up() -> None:
            while any(len(p.working) < p.wanted or p.among("starting") for p in self._pools.values()):
                await asyncio.sleep(LOOK_S)

        await self._unless_failed(first_of(up(), self._tend()))
        self._starting = False

    async def attach(self, publisher: Any) -> None:
        """Serve a new attempt. From now on no generator has a version, until it proved one of `publisher`."""
        self._lives.attach(publisher)
        pool = self._pools["generator"]
        for member in pool.among("serving", "joining"):
            member.version = -1
            pool.move(member, "joining", "a new publisher")
        self._steering.disturbed()

    async def supervise(self) -> None:
        """Replace, scale, take a user's requests and write the status, for ever. Raises RunFailed."""
        await self._unless_failed(self._tend())

    async def orphaned(self) -> None:
        """Wait for ever; raises RoleFailed when the attached publisher is lost, which ends the attempt."""
        while True:
            if (attachment := self._lives.attachment) is None:
                await asyncio.sleep(LOOK_S)
                continue
            await first_of(attachment.lost.wait(), attachment.over.wait())
            if attachment.failure is not None and not attachment.over.is_set():
                raise attachment.failure

    def versions(self) -> dict[int, int]:
        """Index of each generator that may sample -> the version that it has proved; none under pressure."""
        if self._steering.holds_back:
            return {}
        return {member.index: member.version for member in self._pools["generator"].among("serving")}

    def generator(self, index: int) -> Any:
        """Handle of a generator that has a lease. Raises RoleFailed ("generator_left") when it is gone."""
        member = self._pools["generator"].members.get(index)
        if member is None:
            raise RoleFailed("generator_left", "generator", f"generator-{index} is gone")
        return member.handle

    def serving(self, role: Role) -> dict[int, Any]:
        """Handles of the members of a role that take work, by index."""
        return {member.index: member.handle for member in self._pools[role].among("serving")}

    def lost(self, role: Role, index: int, why: str) -> None:
        """Somebody saw a member die: it is replaced now rather than at the next question after its health."""
        member = self._pools[role].members.get(index)
        if member is not None:
            self._lose(member, RoleFailed(f"{role}_died", member.name, why))

    def amended(self, fault: Fault, generator: int) -> Fault:
        """A lease's fault; it says so where the generator left on purpose: the group is not to blame."""
        if fault.reason == "generator_died" and self._pools["generator"].left.get(generator):
            return replace(fault, reason="generator_left")
        return fault

    async def reached(self, number: int, deadline_s: float, *, one: bool = False) -> None:
        """Wait until every generator has proved version `number`, at the deadline every one that serves; with
        `one` until any has, so that a run goes on while the others follow.

        Raises:
            RunFailed: one that serves has not, or none serves; it names those behind.
        """
        until = time.monotonic() + deadline_s
        pool = self._pools["generator"]

        async def proved() -> None:
            while True:
                late = time.monotonic() > until
                asked = pool.among("serving") if late or one else pool.among("serving", "joining")
                behind = [member.name for member in asked if member.version < number]
                if pool.among("serving") and not behind:
                    return
                if late:
                    versions = {member.name: member.version for member in pool.members.values()}
                    raise RunFailed(
                        f"{', '.join(behind) or 'no generator'} did not reach weight version {number} in "
                        f"{deadline_s:g} s; versions proved: {versions}"
                    )
                await asyncio.sleep(LOOK_S)

        await self._unless_failed(proved())

    def loads(self, role: Role) -> dict[int, Mapping[str, float]]:
        """What each member last told of its work, as its health says it under "load"."""
        return {member.index: member.load for member in self._pools[role].members.values()}

    def report(self) -> dict[str, Any]:
        """For people and `status.json`: pools and members."""
        now = time.monotonic()
        return {
            "pools": {
                role: {
                    "wanted": pool.wanted,
                    "serving": len(pool.among("serving")),
                    "low": pool.bounds.low,
                    "high": pool.bounds.high,
                    "standbys": pool.standbys,
                    "pinned": pool.pinned,
                }
                for role, pool in self._pools.items()
            },
            "members": [
                {
                    "role": member.role,
                    "index": member.index,
                    "state": member.state,
                    "version": member.version,
                    "in_flight": member.in_flight,
                    "node": member.place.node if member.place else None,
                    "pid": member.place.pid if member.place else None,
                    "age_s": round(now - member.began, 1),
                }
                for pool in self._pools.values()
                for member in pool.members.values()
            ],
            "pressure": self._steering.pressed,
        }

    async def stop(self) -> None:
        """End all members and take back what was asked of the autoscaler. Never raises."""
        self._stopped = True
        members = [member for pool in self._pools.values() for member in pool.members.values()]
        for member in members:
            if member.task is not None:
                member.task.cancel()
        await asyncio.gather(*(self._lives.farewell(member) for member in members), *self._chores)
        for member in members:
            self._pools[member.role].move(member, "gone", "the run ends")
        await asyncio.gather(*(self._end(member) for member in members), return_exceptions=True)
        with suppress(Exception):
            if self._needs is not None:
                await asyncio.to_thread(self._nodes.request, None, {})
        await self._steering.tell(self.report())

    # -- members come and go --------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Make the pools what they should be: who is too many leaves, who is missing is started."""
        if self._stopped or self._failure is not None:
            return
        for pool in self._pools.values():
            for member in pool.surplus():
                self._dismiss(pool, member)
            while len(pool.working) < pool.wanted:
                if not pool.promote() and not self._begin(pool, spare=False):
                    break
            while len(pool.spares) < pool.standbys and self._begin(pool, spare=True):
                pass
        wanted: dict[Role, int] = {role: pool.wanted + pool.standbys for role, pool in self._pools.items()}
        if self._needs is not None and wanted != self._asked:
            self._asked = wanted
            self._chore(asyncio.to_thread(self._nodes.request, self._needs, wanted))

    def _begin(self, pool: Pool, *, spare: bool) -> bool:
        """Start a member; False while the last start that failed is too recent."""
        if pool.resting_s:
            asyncio.get_running_loop().call_later(pool.resting_s + 0.001, self._reconcile)
            return False
        try:
            member = pool.add(spare=spare)
        except Exception as error:
            self._fail(RunFailed(f"a {pool.role} cannot be made: {type(error).__name__}: {error}"))
            return False
        member.task = asyncio.ensure_future(self._live(pool, member))
        return True

    async def _live(self, pool: Pool, member: Member) -> None:
        try:
            await self._lives.live(pool, member)
        except Exception as error:
            self._lose(member, named(error, member.name))

    def _lose(self, member: Member, failure: RoleFailed) -> None:
        """Give a member up and have it replaced."""
        pool = self._pools[member.role]
        if member.state == "gone":
            return
        unready = member.state in ("starting", "joining")
        why = f"{failure.reason}: {failure.detail}"
        self._remove(pool, member, why)
        if unready and self._starting and not failure.reason.endswith("_died"):
            return self._fail(failure)  # the first start fails by its cause, which will not go away
        try:
            if unready:
                pool.start_failed(member, why)
        except RunFailed as error:
            return self._fail(error)
        self._steering.disturbed()
        self._reconcile()

    def _dismiss(self, pool: Pool, member: Member) -> None:
        """Send one away that is not needed any more."""
        if member.state != "serving":
            return self._remove(pool, member, "not needed any more")
        pool.move(member, "draining", f"{pool.wanted} wanted")
        if member.task is not None:
            member.task.cancel()

        async def leave() -> None:
            await self._lives.drain(member)
            self._remove(pool, member, "has left")

        member.task = asyncio.ensure_future(leave())

    def _remove(self, pool: Pool, member: Member, why: str) -> None:
        if member.state == "gone":
            return
        pool.move(member, "gone", why)
        if member.task is not None and member.task is not asyncio.current_task():
            member.task.cancel()
        self._chore(self._end(member))

    async def _end(self, member: Member) -> None:
        """Kill what may still run. A thread does it, since Ray's head may be slow."""

        def end() -> None:
            place = member.place
            if place is None:
                with suppress(Exception):
                    place = self._nodes.find(member.handle)
            self._nodes.end(member.handle, place)

        await asyncio.to_thread(end)

    def _record(self, member: Member, why: str) -> None:
        self._journal.write(
            "member",
            role=member.role,
            index=member.index,
            state=member.state,
            pid=member.place.pid if member.place else None,
            node=member.place.node if member.place else None,
            began=member.place.began if member.place else None,
            why=why,
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._failed.set()

    async def _tend(self) -> None:
        while True:
            await self._steering.steer()
            self._reconcile()
            await self._steering.tell(self.report())
            await asyncio.sleep(self._lives.deadlines.period)

    async def _unless_failed(self, work: Coroutine[Any, Any, None]) -> None:
        await first_of(work, self._failed.wait())
        if self._failure is not None:
            raise self._failure

    def _chore(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
