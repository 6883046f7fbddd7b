"""The loop when work fails, hangs or comes late, when too much is buffered, and when services die."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from actors.accounts import weigh
from pipelines.loop import PROMPT_LOST, Limits, LocalProducer, RoleFailed, drive
from pipelines.types import Fault, Group, Lease, Media, Receipt
from tests.pipelines.loop_world import FAST, World, comparison, run

# --- tries, leases that take too long, back-pressure -------------------------------------------------------


def test_who_shares_a_generator_with_a_poisoned_prompt_is_not_convicted_with_it() -> None:
    """The poisoned prompt kills the generator and all work on it; alone it kills only itself."""
    world = World(steps=4, generators=1, settings={"max_tries": 3})
    life, busy, beside = 0, set[int](), list[set[int]]()

    async def deadly(lease: Lease, parcel: Any) -> Receipt | Fault:
        nonlocal life
        mine = life
        busy.add(lease.cursor)
        try:
            await asyncio.sleep(0.002 if lease.cursor == 2 else 0.004)
            if lease.cursor == 2:
                beside.append(busy - {2})
                life += 1
            if life != mine:
                raise RoleFailed("generator_died", "generator", "killed by one of its requests")
            return await world.produce(lease, parcel)
        finally:
            busy.remove(lease.cursor)

    counts = run(world, deadly)
    assert counts["dropped"] == {"dead_letter": 1} and counts["trained"] == 16
    assert len(beside) == 5 and len(beside[0]) >= 3 and beside[2:] == [set(), set(), set()]
    [letter] = [e for e in asyncio.run(world.ledger.events(0)) if e["event"] == "dead_letter"]
    assert letter["cursor"] == 2 and len(letter["faults"]) == 5


@pytest.mark.parametrize("seed", range(3))
def test_the_last_try_has_nothing_beside_it(seed: int) -> None:
    world = World(steps=6, generators=2, seed=seed)
    tries: Counter[int] = Counter()
    under_way: set[int] = set()
    alone: list[int] = []
    beside: list[tuple[int, set[int]]] = []  # what was under way when another began, if either is a last try

    async def work(lease: Lease, parcel: Any) -> Receipt | Fault:
        tries[lease.cursor] += 1
        last = tries[lease.cursor] == 3
        if under_way and (last or under_way & set(alone)):
            beside.append((lease.cursor, set(under_way)))
        if last:
            alone.append(lease.cursor)
        under_way.add(lease.cursor)
        try:
            await world.nap()
            if lease.cursor % 4 == 1 and tries[lease.cursor] < 3:
                raise RoleFailed("scorer_died", "scorer", "node a")
            return await world.produce(lease, parcel)
        finally:
            under_way.discard(lease.cursor)

    counts = run(world, work)
    assert beside == []
    # What is tried three times may be stale when it is done.
    assert counts["trained"] == 24 and counts["dropped"].keys() <= {"end_of_run", "stale"}
    assert len(alone) == len(set(alone)) >= 6 and set(tries.values()) == {1, 3}


def test_work_on_a_lease_that_the_ledger_voided_is_given_up_and_issued_again() -> None:
    world = World(steps=3, timeout_s=60, settings={"lease_s": 0.3})
    tries: Counter[int] = Counter()
    gone: list[int] = []
    in_time: list[bool] = []

    async def stuck(lease: Lease, parcel: Any) -> Receipt | Fault:
        tries[lease.cursor] += 1
        if tries[lease.cursor] == 2:
            in_time.append(lease.cursor in gone)
        if lease.cursor in (1, 6) and tries[lease.cursor] == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gone.append(lease.cursor)
                raise
        return await world.produce(lease, parcel)

    counts = run(world, stuck)
    assert counts["trained"] == 12 and counts["dropped"].keys() <= {"end_of_run"}
    assert sorted(gone) == [1, 6] and tries[1] == tries[6] == 2 and counts["expired"] == 2
    assert in_time == [True, True]


def test_work_that_ends_slowly_does_not_outlive_the_loop() -> None:
    world = World(steps=1, groups=2, timeout_s=60, settings={"lease_s": 0.2, "max_tries": 1})

    async def stuck(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor == 1:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.5)  # it is in no hurry to end
        return await world.produce(lease, parcel)

    async def main() -> None:
        await asyncio.gather(world.learn(), world.drive(stuck))
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert asyncio.run(world.ledger.counts())["expired"] == 1


def test_a_ledger_without_news_is_not_a_silent_one() -> None:
    world = World(steps=1, groups=2, lag=0, timeout_s=20)

    async def slow(lease: Lease, parcel: Any) -> Receipt | Fault:
        await asyncio.sleep(2.5)
        return await world.produce(lease, parcel)

    assert run(world, slow, replace(FAST, call_s=2.0))["trained"] == 2


def test_a_delivery_that_the_ledger_refused_is_issued_again() -> None:
    """The lease expires while its delivery is on the way, before the loop has heard of it."""
    clock = [0.0]
    world = World(steps=2, groups=2, lag=0, settings={"lease_s": 30, "clock": lambda: clock[0]})
    late: list[Receipt] = []

    async def slow(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor == 0 and not late:
            clock[0] += 31
            assert lease.fence in (await world.ledger.state()).expired
            late.append(await world.ledger.accept(world.group(lease, 0)))
            return late[0]
        return await world.produce(lease, parcel)

    counts = run(world, slow)
    assert not late[0].accepted and counts["trained"] == 4 and counts["fenced"] >= 1


def test_a_work_that_hangs_for_ever_is_a_dead_letter_in_the_end() -> None:
    world = World(steps=2, timeout_s=60, settings={"lease_s": 0.2, "max_tries": 2})

    async def stuck(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor == 1:
            await asyncio.sleep(60)
        return await world.produce(lease, parcel)

    counts = run(world, stuck)
    assert counts["dropped"]["dead_letter"] == 1 and counts["expired"] == 2 and counts["trained"] == 8


PICTURE = Media(kind="image", space="rgb8", payload=np.zeros((10, 10, 3), np.uint8))


async def deliver(world: World, lease: Lease) -> Receipt:
    """A group that weighs as much as all others of these tests."""
    made = world.group(lease, world.fleet.proved[lease.generator])
    await world.nap()
    return await world.ledger.accept(replace(made, media={PICTURE.digest: PICTURE}))


SIZE = weigh(Group(id="", fence=0, comparisons=(comparison(""),), media={PICTURE.digest: PICTURE}, version=0))


@pytest.mark.parametrize("limit", [0, 1, 6, 100])
def test_only_the_next_step_is_filled_while_too_many_bytes_are_buffered(limit: int) -> None:
    """The learner begins when the loop has nothing left to issue: after the 20 groups that lag 4 admits, or
    when more than `limit` groups are held and a step of 4 is full. Four are under way at one time."""
    world = World(steps=5, groups=4, lag=4)
    limits = replace(FAST, buffer_bytes=limit * SIZE, in_flight=2)

    async def work(lease: Lease, parcel: Any) -> Receipt | Fault:
        return await deliver(world, lease)

    async def main() -> tuple[int, dict[str, Any]]:
        driving = asyncio.create_task(world.drive(work, limits))
        while True:
            state, counts = await world.ledger.state(), await world.ledger.counts()
            if state.leased == 0 and (counts["held_back"] or state.buffered == 20):
                break
            await asyncio.sleep(0.001)
        await asyncio.gather(driving, world.learn())
        return state.buffered, await world.ledger.counts()

    most, counts = asyncio.run(asyncio.wait_for(main(), 20))
    assert most == 20 if limit == 100 else max(4, limit + 1) <= most <= limit + 4
    assert counts["trained"] == 20
    events = [e["on"] for e in asyncio.run(world.ledger.events(0)) if e["event"] == "held_back"]
    assert events == [n % 2 == 0 for n in range(len(events))]  # each begins and ends
    assert counts["held_back"] == events.count(True) and bool(events) == (limit < 100)


def test_failed_work_is_issued_again_below_the_bound_as_long_as_the_step_lacks_it() -> None:
    world = World(steps=4, groups=4, lag=3)
    tries: Counter[int] = Counter()

    async def flaky(lease: Lease, parcel: Any) -> Receipt | Fault:
        tries[lease.cursor] += 1
        if tries[lease.cursor] < 3 and lease.cursor % 2:
            raise RoleFailed("scorer_died", "scorer", "node a")
        return await deliver(world, lease)

    counts = run(world, flaky, replace(FAST, buffer_bytes=0))
    assert counts["trained"] == 16


# --- services that die or do not answer --------------------------------------------------------------------


@dataclass
class Broken:
    """A service one of whose calls fails, or never answers, from the n-th time on."""

    inner: Any
    call: str
    error: Exception | None = None
    after: int = 3

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.inner, name)
        if name != self.call:
            return real

        async def call(*args: Any) -> Any:
            self.after -= 1
            if self.after >= 0:
                return await real(*args)
            if self.error is not None:
                raise self.error
            await asyncio.sleep(60)

        return call


def end_of(world: World, limits: Limits, **services: Any) -> BaseException:
    """What ends the loop when a service breaks."""

    async def main() -> Any:
        roles = {"prompts": world.prompts, "ledger": world.ledger} | services
        producer = LocalProducer(world.produce, timeout_s=2)
        driving = drive(
            roles["prompts"], producer, roles["ledger"], world.fleet, world.admission, world.stop, limits
        )
        found = await asyncio.gather(asyncio.wait_for(driving, 60), return_exceptions=True)
        await asyncio.sleep(0.01)  # a call that was cancelled ends in the next turn
        assert len(asyncio.all_tasks()) == 1  # nothing outlives the loop
        return found[0]

    return asyncio.run(main())


@pytest.mark.parametrize("call", ["state", "issue", "changed"])
@pytest.mark.parametrize("error", [RoleFailed("ledger_died", "ledger", "exit code 9"), None])
def test_a_ledger_that_dies_or_is_silent_ends_the_attempt_by_its_name(
    call: str, error: RoleFailed | None
) -> None:
    world = World(groups=2)
    limits = replace(FAST, call_s=0.4)
    found = end_of(world, limits, ledger=Broken(world.ledger, call, error, after=0))
    assert isinstance(found, RoleFailed) and found.role == "ledger"
    assert found.reason == ("ledger_died" if error else "timeout")


def test_a_fault_that_cannot_be_told_to_the_ledger_ends_the_attempt() -> None:
    world = World(groups=2)

    async def fails(lease: Lease, parcel: Any) -> Receipt | Fault:
        raise RoleFailed("ledger_died", "ledger", "the scorer could not deliver")

    world.produce = fails  # type: ignore[method-assign]
    died = RoleFailed("ledger_died", "ledger", "exit code 9")
    found = end_of(world, FAST, ledger=Broken(world.ledger, "fail", died, after=0))
    assert found is died


def test_a_prompt_that_went_with_its_stream_ends_the_attempt_and_speaks_against_no_group() -> None:
    world = World(groups=2)

    async def lost(lease: Lease, parcel: Any) -> Receipt | Fault:
        return RoleFailed(PROMPT_LOST, "data", "OwnerDiedError: the prompt stream is gone").fault(lease.group)

    world.produce = lost  # type: ignore[method-assign]
    found = end_of(world, FAST)
    assert isinstance(found, RoleFailed) and (found.role, found.reason) == ("data", PROMPT_LOST)
    counts = asyncio.run(world.ledger.counts())
    assert counts["leased"] and (counts["retried"], counts["dropped"]) == (0, {})


@pytest.mark.parametrize("error", [RoleFailed("data_died", "data", "exit code 9"), None])
def test_a_prompt_stream_that_dies_or_is_silent_ends_the_attempt_by_its_name(
    error: RoleFailed | None,
) -> None:
    world = World(groups=2)
    limits = replace(FAST, patience_s=0.2)
    found = end_of(world, limits, prompts=Broken(world.prompts, "next", error, after=0))
    assert isinstance(found, RoleFailed) and found.role == "data"
