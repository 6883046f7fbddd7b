"""Collects what is asked of a model while it is busy, and hands it over together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

QUIET_TURNS = 24  # turns of the event loop without another request before a batch is closed


class Batcher(Generic[Item, Result]):
    """`work` gets a batch and returns one result, or one exception, per item, in order.

    What is in a batch follows from the order of events alone, never from a clock, so that the same program in
    the same event loop meets the same batches.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]]) -> None:
        self._work = work
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        """The result of one item; raises its exception."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await future

    async def stop(self) -> None:
        """Give up what is waiting or under way; those who asked get RuntimeError."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    async def _serve(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        try:
            while self._waiting:
                await self._quiet()
                batch = [entry for entry in self._waiting if not entry[1].done()]  # some were cancelled
                self._waiting.clear()
                results = await self._work([item for item, _ in batch]) if batch else ()
                for (_, future), result in zip(batch, results, strict=True):
                    _settle(future, result)
        except asyncio.CancelledError:
            self._fail(batch, "it was stopped")
            raise
        except Exception as error:
            self._fail(batch, f"{type(error).__name__}: {error}")
        finally:
            self._serving = None

    def _fail(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]], why: str) -> None:
        for _, future in (*batch, *self._waiting):
            _settle(future, RuntimeError(f"the model gave no answer: {why}"))
        self._waiting.clear()

    async def _quiet(self) -> None:
        turns, size = 0, len(self._waiting)
        while turns < QUIET_TURNS:
            await asyncio.sleep(0)
            turns = turns + 1 if len(self._waiting) == size else 0
            size = len(self._waiting)


def _settle(future: asyncio.Future[Result], result: Result | BaseException) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
