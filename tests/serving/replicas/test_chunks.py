"""Fast items travel together, slow ones alone; nothing is lost, delayed at the end, or left open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replicas.chunks import together

FOREVER = 3600.0


class Source:
    """Gives each batch of numbers once the test lets it; `error` comes at the end."""

    def __init__(self, batches: Sequence[int], error: Exception | None = None) -> None:
        self.batches, self.error = batches, error
        self.go = asyncio.Semaphore(0)
        self.given, self.closed = 0, False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for size in self.batches:
                await self.go.acquire()
                for _ in range(size):
                    self.given += 1
                    yield self.given
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_first_comes_at_once_and_the_end_without_delay() -> None:
    async def main() -> None:
        source = Source([1, 3, 2])
        lists = together(source.items(), FOREVER)
        source.go.release()
        assert await anext(lists) == [1]
        source.go.release()
        following = asyncio.ensure_future(anext(lists))
        await settle()
        assert source.given == 4 and not following.done()  # three wait, for others or for the end
        source.go.release()
        assert await following == [2, 3, 4, 5, 6]
        with pytest.raises(StopAsyncIteration):
            await anext(lists)
        assert source.closed

    asyncio.run(main())


def test_slow_items_are_not_held_up() -> None:
    async def main() -> None:
        source = Source([1] * 5)
        lists = together(source.items(), 0.0)
        for number in range(1, 6):
            source.go.release()
            assert await anext(lists) == [number]
            await settle()

    asyncio.run(main())


@given(batches=st.lists(st.integers(0, 4), max_size=6), fails=st.booleans())
@settings(deadline=None)
def test_all_items_come_in_order_and_what_was_raised_after_them(batches: list[int], fails: bool) -> None:
    async def main() -> None:
        source = Source(batches, KeyError("broken") if fails else None)
        for _ in batches:
            source.go.release()
        came: list[int] = []
        try:
            async for some in together(source.items(), 0.001):
                assert some
                came += some
            assert not fails
        except KeyError:
            assert fails
        assert came == list(range(1, sum(batches) + 1))
        assert source.closed and len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_who_leaves_closes_the_source(way: str) -> None:
    async def main() -> None:
        source = Source([1, 1])
        source.go.release()
        lists = together(source.items(), FOREVER)
        assert await anext(lists) == [1]
        if way == "close":
            await lists.aclose()
        else:
            following = asyncio.ensure_future(anext(lists))
            await settle()
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following
        assert source.closed and len(asyncio.all_tasks()) == 1

    asyncio.run(main())
