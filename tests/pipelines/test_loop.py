"""The loop with the real ledger and fakes around it: timings are random, the log is the learner's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors.generator import ForbiddenToken, PromptMismatch, Quarantined
from actors.ledger import Ledger
from pipelines.loop import Limits, LocalProducer, RoleFailed, RunFailed, drive
from pipelines.types import Fault, Lease, Receipt
from tests.pipelines.loop_world import FAST, World, run


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (1, 1), (0, 2), (2, 3)])
def test_nothing_is_trained_above_the_lag(seed: int, lag: int, sync_every: int) -> None:
    world = World(lag=lag, sync_every=sync_every, seed=seed, steps=7)
    counts = run(world)
    assert max((step - 1) // sync_every - version for step, _, version in world.log) <= lag
    assert len(world.log) == len({group for _, group, _ in world.log}) == 7 * 4 == counts["trained"]
    assert counts["issued"] == counts["trained"] + sum(counts["dropped"].values())
    assert counts["leased"] == counts["buffered"] == counts["sealed"] == counts["released"] == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (2, 1), (5, 3)])
def test_nothing_of_a_stage_is_issued_before_the_version_that_ends_the_one_before(
    seed: int, lag: int, sync_every: int
) -> None:
    world = World(lag=lag, sync_every=sync_every, seed=seed, ends=(2, 3), steps=7)
    tried: Counter[int] = Counter()

    async def flaky(lease: Lease, parcel: Any) -> Receipt | Fault:
        tried[lease.cursor] += 1
        if lease.cursor % 5 == 0 and tried[lease.cursor] == 1:
            raise RoleFailed("generator_died", "generator", "node a")
        if lease.cursor % 7 == 0:
            world.leases.append(lease)
            return await world.ledger.accept(world.group(lease, 0, dropped="tie"))
        return await world.produce(lease, parcel)

    counts = run(world, flaky)
    stage_of = {lease.group: lease.stage for lease in world.leases}
    for step, group, version in world.log:
        stage = world.admission.stage_at(step)
        assert stage_of[group] == stage and version >= world.admission.due(world.admission.first(stage))
    assert Counter(step for step, _, _ in world.log) == dict.fromkeys(range(1, 8), 4)
    assert [event for event in world.events if event[0] != "train" or event[1] in (2, 3)] == [
        ("train", 2),
        ("stage over", 0),
        ("train", 3),
        ("stage over", 1),
    ]
    cursors = sorted({lease.cursor for lease in world.leases})
    assert cursors == list(range(len(cursors)))  # no prompt is passed over between stages
    assert counts["dropped"].keys() <= {"tie", "end_of_run"}
    assert [lease.stage for lease in world.leases] == sorted(lease.stage for lease in world.leases)


def test_the_data_may_end_before_the_stages_do() -> None:
    world = World(rows=10, ends=(4,), steps=50, groups=4)
    counts = run(world)
    assert Counter(step for step, _, _ in world.log) == {1: 4, 2: 4, 3: 2}
    assert counts["issued"] == counts["trained"] == 10


def test_strictly_on_policy_never_overlaps_two_steps() -> None:
    world = World(lag=0, steps=6)
    run(world)
    assert all(version == step - 1 for step, _, version in world.log)
    assert world.most_live <= world.groups
    assert len(world.leases) == 6 * 4  # nothing was sampled in vain


def test_end_of_data_trains_a_smaller_step() -> None:
    world = World(rows=10, steps=50, groups=4)
    counts = run(world)
    assert Counter(step for step, _, _ in world.log) == {1: 4, 2: 4, 3: 2}
    assert counts["issued"] == counts["trained"] == 10


def test_faults_are_issued_again_with_a_new_fence_and_nothing_is_lost() -> None:
    world = World(steps=4, generators=2)
    tries: Counter[int] = Counter()

    async def flaky(lease: Lease, parcel: Any) -> Receipt | Fault:
        tries[lease.cursor] += 1
        if lease.cursor % 3 == 0 and tries[lease.cursor] < 3:
            raise RoleFailed("generator_died", "generator", "node a")
        return await world.produce(lease, parcel)

    counts = run(world, flaky)
    assert counts["trained"] == 16 and counts["dropped"] == {}
    assert all(tries[cursor] == (3 if cursor % 3 == 0 else 1) for cursor in range(16))
    assert counts["retried"] == 2 * 6
    fences = [lease.fence for lease in world.leases]
    assert len(set(fences)) == len(fences)


def test_a_poisoned_prompt_is_dead_lettered_with_its_evidence() -> None:
    world = World(steps=3)

    async def poisoned(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor == 2:
            raise RoleFailed("scorer_died", "scorer", "exit code 9")
        return await world.produce(lease, parcel)

    counts = run(world, poisoned)
    assert counts["dropped"] == {"dead_letter": 1} and counts["trained"] == 12
    [drop] = [event for event in asyncio.run(world.ledger.events(0)) if event["event"] == "drop"]
    assert drop["detail"].count("exit code 9") == 5 and drop["cursor"] == 2


def test_a_fault_that_cannot_heal_is_dropped_at_once_under_its_own_name() -> None:
    world = World(steps=2)

    async def bad(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor == 0:
            raise ValueError("a special token in the text")
        return await world.produce(lease, parcel)

    counts = run(world, bad)
    assert counts["dropped"] == {"value_error": 1} and counts["retried"] == 0 and counts["trained"] == 8


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ForbiddenToken("a special token"), "forbidden_token"), (PromptMismatch("image"), "prompt_mismatch")],
)
def test_what_an_input_does_to_every_generator_is_a_named_drop_and_no_retry(
    error: Exception, reason: str
) -> None:
    world = World(steps=3)

    async def refuse(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.cursor in (1, 4):
            raise RoleFailed.of(error, "generator")
        return await world.produce(lease, parcel)

    counts = run(world, refuse)
    assert counts["dropped"] == {reason: 2} and counts["retried"] == 0 and counts["trained"] == 12


def test_work_of_a_quarantined_generator_goes_to_another() -> None:
    world = World(steps=4, generators=2)
    refused: list[Lease] = []

    async def quarantined(lease: Lease, parcel: Any) -> Receipt | Fault:
        if lease.generator == 0:
            refused.append(lease)
            raise RoleFailed.of(Quarantined("weight version 1 is not proved"), "generator")
        return await world.produce(lease, parcel)

    counts = run(world, quarantined, limits=replace(FAST, rest_s=60))
    assert counts["trained"] == 16 and counts["dropped"] == {}
    assert counts["retried"] == len(refused) > 0
    renewed = {lease.group: lease for lease in world.leases}
    assert all(renewed[lease.group].generator == 1 for lease in refused)
    assert all(renewed[lease.group].fence > lease.fence for lease in refused)


def test_a_stopped_run_leases_nothing_more_and_lets_work_finish() -> None:
    world = World(steps=100)

    async def main() -> None:
        learning = asyncio.create_task(world.learn())
        driving = asyncio.create_task(world.drive())
        while len(world.log) < 2 * world.groups:
            await asyncio.sleep(0.001)
        world.stop.set()
        leased = len(world.leases)
        await asyncio.wait_for(asyncio.gather(learning, driving), 5)
        # A lease whose task was created but had not begun when the signal came still counts as under way.
        assert len(world.leases) - leased <= (world.lag + 1) * world.groups
        assert world.live == 0
        assert (await world.ledger.state()).phase == "stopping"
        await world.ledger.release()
        world.ledger.check()

    asyncio.run(main())
    counts = asyncio.run(world.ledger.counts())
    assert counts["issued"] == counts["trained"] + counts["released"]
    assert counts["leased"] == counts["buffered"] == counts["sealed"] == 0
    assert counts["trained"] == len(world.log)


def test_work_that_hangs_is_abandoned_after_the_drain_and_released() -> None:
    world = World(steps=100, groups=2)

    async def hang(lease: Lease, parcel: Any) -> Receipt | Fault:
        world.leases.append(lease)
        world.stop.set()
        await asyncio.sleep(60)
        raise AssertionError

    async def main() -> dict[str, Any]:
        await asyncio.wait_for(world.drive(hang), 5)
        assert len(asyncio.all_tasks()) == 1  # nothing outlives the loop
        await world.ledger.release()
        return await world.ledger.counts()

    counts = asyncio.run(main())
    assert counts["released"] == counts["issued"] == len(world.leases) > 0


def test_too_many_drops_for_one_reason_end_the_run_and_name_it() -> None:
    world = World(steps=100, settings={"max_drop_share": 0.5})

    async def tie(lease: Lease, parcel: Any) -> Receipt | Fault:
        return await world.ledger.accept(world.group(lease, 0, dropped="tie"))

    async def main() -> list[Any]:
        return await asyncio.gather(world.learn(), world.drive(tie), return_exceptions=True)

    learner, driver = asyncio.run(main())
    assert isinstance(learner, RunFailed) and isinstance(driver, RunFailed)
    assert "'tie'" in str(driver) and "max_drop_share=0.5" in str(driver)


def test_a_run_in_which_nothing_moves_says_who_holds_what() -> None:
    world = World(groups=2, lag=0)

    async def silent(lease: Lease, parcel: Any) -> Receipt | Fault:
        await asyncio.sleep(60)
        raise AssertionError

    limits = Limits(tick_s=0.005, patience_s=0.1)
    with pytest.raises(RunFailed, match=r"nothing moved for 0\.1 s.*Under way: 2 groups"):
        asyncio.run(
            drive(
                world.prompts,
                LocalProducer(silent),
                world.ledger,
                world.fleet,
                world.admission,
                world.stop,
                limits,
            )
        )


def test_work_goes_to_the_generator_with_the_fewest_leases_that_admits() -> None:
    world = World(steps=2, groups=6, generators=3, lag=0)
    world.fleet.proved[1] = -1  # has proved nothing for step 1
    run(world)
    first = Counter(lease.generator for lease in world.leases[:6])
    assert first == {0: 3, 2: 3}


def test_a_resumed_run_skips_what_is_settled_and_trains_the_rest_once() -> None:
    first = World(steps=3, seed=1)
    run(first)
    snapshot = asyncio.run(first.ledger.snapshot(2))
    second = World(steps=3, seed=2)
    second.ledger = Ledger("run", 2, first.admission, wait_s=5)
    second.fleet.proved = {0: 2, 1: 2}

    async def resume() -> None:
        await second.ledger.restore(snapshot)
        driving = asyncio.create_task(second.drive())
        shard = await second.ledger.pull(2, 3, 0, 1)
        second.log = [(3, group.id, group.version) for group in shard.groups]
        await second.ledger.trained(2, 3, {})
        await driving

    asyncio.run(asyncio.wait_for(resume(), 5))
    kept = {group for step, group, _ in first.log if step <= 2}
    again = {group for _, group, _ in second.log}
    assert len(kept) == 8 and len(again) == 4 and not kept & again
    counts = asyncio.run(second.ledger.counts())
    assert counts["trained"] == 12 and counts["issued"] == 12 + sum(counts["dropped"].values())
