"""Tasks beside the work of an attempt: whatever one of them raises ends that work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The run was asked to stop while it was at something that it can leave unfinished."""


class Guards:
    """What watches over an attempt. `stop`: set when the run is asked to end."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._on_duty: set[asyncio.Task[Any]] = set()
        self._all: list[asyncio.Task[Any]] = []

    def add(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._on_duty.add(task)
        self._all.append(task)
        return task

    def dismiss(self, *tasks: asyncio.Task[Any]) -> None:
        """What becomes of these, or of all, ends nothing any more. They go on until `end`."""
        self._on_duty -= set(tasks or self._all)

    async def beside(self, work: Awaitable[T]) -> T:
        """Await `work`; raise at once what a guard raises. One that merely ends is off duty.

        The work is a task of its own, so that a cancellation always arrives: before Python 3.12
        `asyncio.wait_for` swallows one that comes together with its result.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                done, _ = await asyncio.wait({task, *self._on_duty}, return_when=asyncio.FIRST_COMPLETED)
                for guard in done & self._on_duty:
                    guard.result()
                    self._on_duty.discard(guard)
            return task.result()
        finally:
            await cancel([task])

    async def unless_stopped(self, work: Awaitable[None]) -> None:
        """The same; raises `Stopped` as soon as the run is asked to stop."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await self.beside(asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED))
            if not working.done():
                raise Stopped
            working.result()
        finally:
            await cancel([working, stopping])

    async def end(self, but: Iterable[asyncio.Task[Any]] = ()) -> None:
        await cancel(task for task in self._all if task not in but)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until they are gone; what they raise has been seen.

    More than once, for the reason that `Guards.beside` gives (seen: an attempt that ended a minute after its
    learner).
    """
    tasks = list(tasks)
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=1.0)
    for task in tasks:
        if not task.cancelled():
            task.exception()
