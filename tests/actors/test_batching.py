"""What is asked together is served together, and every asker gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from actors.batching import Batcher


class Model:
    """Doubles numbers; a batch is under way until `go` is set. Odd numbers below zero are refused."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def serve(self, items: Sequence[int]) -> list[int | BaseException]:
        self.batches.append(list(items))
        await self.go.wait()
        return [ValueError(f"{item} is below zero") if item < 0 else 2 * item for item in items]


def run(scenario: Any) -> None:
    async def bounded() -> None:
        model = Model()
        await asyncio.wait_for(scenario(model, Batcher(model.serve)), 5)

    asyncio.run(bounded())


def test_requests_of_one_moment_share_a_batch_and_later_ones_wait_for_the_next():
    async def scenario(model: Model, batcher: Batcher[int, int]) -> None:
        model.go.clear()
        first = [asyncio.create_task(batcher.ask(number)) for number in range(3)]
        while not model.batches:
            await asyncio.sleep(0)
        later = [asyncio.create_task(batcher.ask(number)) for number in (10, 11)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(*first, *later) == [0, 2, 4, 20, 22]
        assert model.batches == [[0, 1, 2], [10, 11]]
        assert await batcher.ask(7) == 14  # a batcher that was idle starts again

    run(scenario)


def test_requests_that_come_a_few_turns_apart_still_share_a_batch():
    async def late(batcher: Batcher[int, int], turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await batcher.ask(turns)

    async def scenario(model: Model, batcher: Batcher[int, int]) -> None:
        assert await asyncio.gather(*(late(batcher, turns) for turns in (0, 5, 20))) == [0, 10, 40]
        assert model.batches == [[0, 5, 20]]

    run(scenario)


def test_an_exception_is_that_of_its_item_alone():
    async def scenario(model: Model, batcher: Batcher[int, int]) -> None:
        results = await asyncio.gather(batcher.ask(1), batcher.ask(-3), return_exceptions=True)
        assert results[0] == 2 and isinstance(results[1], ValueError)
        assert model.batches == [[1, -3]]

    run(scenario)


def test_who_gives_up_is_left_out():
    async def scenario(model: Model, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher.ask(number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert await asyncio.gather(tasks[0], tasks[2]) == [0, 4]
        assert model.batches == [[0, 2]]

    run(scenario)


def test_stopping_and_failing_reach_everybody_who_waits():
    async def scenario(model: Model, batcher: Batcher[int, int]) -> None:
        model.go.clear()
        under_way = asyncio.create_task(batcher.ask(1))
        while not model.batches:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        await batcher.stop()
        for task in (under_way, waiting):
            with pytest.raises(RuntimeError, match="the model gave no answer"):
                await task

    run(scenario)

    async def broken(items: Sequence[int]) -> list[int]:
        raise MemoryError("full")

    async def failing() -> None:
        with pytest.raises(RuntimeError, match="MemoryError: full"):
            await Batcher(broken).ask(1)

    asyncio.run(failing())
