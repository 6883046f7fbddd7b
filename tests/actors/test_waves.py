"""Waves with the real ledger and a producer that answers at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors.ledger import Ledger
from actors.waves import Waves
from pipelines.admission import Admission, Stretch
from pipelines.loop import Parcel, PromptItem
from pipelines.types import Comparison, Fault, Group, Lease, Receipt, Shard

SIZE = 3
Answer = Callable[[Lease], Group | Fault]


class Prompts:
    def __init__(self, count: int = 100) -> None:
        self.items: list[PromptItem] = [(i, 0, str(i), [i]) for i in range(count)]

    async def next(self, limit: int) -> Sequence[PromptItem]:
        taken, self.items = self.items[:limit], self.items[limit:]
        return taken


class Producer:
    """Delivers what `answer` says; notes the cursors of each wave, that is, of leases that overlap."""

    def __init__(self, ledger: Ledger, answer: Answer) -> None:
        self.ledger, self.answer = ledger, answer
        self.waves: list[list[int]] = []
        self.under_way = 0

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        if self.under_way == 0:
            self.waves.append([])
        self.waves[-1].append(lease.cursor)
        self.under_way += 1
        await asyncio.sleep(0)
        self.under_way -= 1
        answer = self.answer(lease)
        return await self.ledger.accept(answer) if isinstance(answer, Group) else answer


def group(lease: Lease, dropped: str | None = None) -> Group:
    comparison = Comparison(id=f"{lease.group}/0", prompts=(), responses=(), candidates=(), preferences=())
    comparisons = () if dropped else (comparison,)
    return Group(
        id=lease.group,
        fence=lease.fence,
        comparisons=comparisons,
        media={},
        version=lease.step - 1,
        dropped=dropped,
    )


def fault(lease: Lease) -> Fault:
    return Fault(group=lease.group, reason="broken", role="scorer", detail="it broke", retry=True)


class Setting:
    def __init__(self, answer: Answer, prompts: int = 100, lasts: Sequence[int] = (4,)) -> None:
        stages = tuple(Stretch(last=last, max_lag=0) for last in lasts)
        self.ledger = Ledger("run", 1, Admission(sync_every=1, groups_per_step=SIZE, stages=stages))
        self.producer = Producer(self.ledger, answer)
        self.ordered: list[int] = []
        self.stopped = False
        self.waves = Waves(
            Prompts(prompts),
            self.producer,
            self.ledger,
            size=SIZE,
            seed=5,
            order=self.order,
            stopped=lambda: self.stopped,
        )

    async def order(self, stage: int) -> None:
        self.ordered.append(stage)

    async def step(self, step: int) -> Shard:
        shard = await self.waves.pull(1, step, 0, 1)
        if not shard.stop:
            await self.ledger.trained(1, step, {})
            await self.ledger.published(step)
        self.ledger.check()
        return shard


def test_what_is_dropped_is_replaced_in_the_next_wave_and_nothing_is_left_over():
    setting = Setting(lambda lease: group(lease, "tie" if lease.cursor in (1, 2, 3) else None))

    async def run() -> list[list[str]]:
        shards = [await setting.step(1), await setting.step(2)]
        state = await setting.ledger.state()
        assert (state.live, state.cursor, state.trained) == (0, 9, 6)
        return [[g.id for g in shard.groups] for shard in shards]

    first, second = asyncio.run(run())
    # Step 1 lacks 3, then 2 (1 and 2 tied), then 1 (3 tied); step 2 needs one wave.
    assert setting.producer.waves == [[0, 1, 2], [3, 4], [5], [6, 7, 8]]
    assert len(first) == len(second) == SIZE


def test_what_fails_is_tried_again_with_the_next_wave_and_then_alone_or_given_up():
    seen: list[int] = []

    def answer(lease: Lease) -> Group | Fault:
        seen.append(lease.cursor)
        return fault(lease) if lease.cursor == 1 and seen.count(1) < 3 else group(lease)

    setting = Setting(answer)
    shard = asyncio.run(setting.step(1))
    waves = setting.producer.waves
    assert len(shard.groups) == SIZE and waves[0] == [0, 1, 2] and waves[1] == [1]
    assert sum(wave.count(1) for wave in waves) == 3 and all(wave == [1] for wave in waves[1:])


def test_the_last_step_takes_what_the_data_still_has():
    setting = Setting(group, prompts=4)

    async def run() -> list[Shard]:
        return [await setting.step(step) for step in (1, 2)] + [await setting.waves.pull(1, 3, 0, 1)]

    assert [(len(shard.groups), shard.stop) for shard in asyncio.run(run())] == [
        (3, False),
        (1, False),
        (0, True),
    ]


def test_a_run_ends_between_two_steps_only():
    setting = Setting(group)

    def stop_meanwhile(lease: Lease) -> Group:
        setting.stopped = True
        return group(lease, "tie" if lease.cursor == 0 else None)

    setting.producer.answer = stop_meanwhile

    async def run() -> list[Shard]:
        return [await setting.step(1), await setting.waves.pull(1, 2, 0, 1)]

    first, second = asyncio.run(run())
    assert len(first.groups) == SIZE and not first.stop and second.stop
    assert setting.producer.waves == [[0, 1, 2], [3]]


def test_stages_are_ordered_when_they_open():
    setting = Setting(group, lasts=(1, 3))

    async def run() -> None:
        for step in (1, 2, 3):
            assert len((await setting.step(step)).groups) == SIZE

    asyncio.run(run())
    assert setting.ordered == [0, 1]


def test_each_step_begins_with_random_states_of_its_own():
    def states(draws: int) -> list[Any]:
        setting = Setting(group)

        async def run() -> list[Any]:
            found = []
            for step in (1, 2):
                await setting.step(step)
                found.append((torch.rand(1).item(), np.random.rand(), random.random()))
                for _ in range(draws):
                    torch.rand(3), np.random.rand(), random.random()
            return found

        return asyncio.run(run())

    few, many = states(0), states(7)
    assert few == many and few[0] != few[1]
