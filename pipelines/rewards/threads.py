"""Blocking work beside an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
# In a deterministic run work is done where it is asked for: whoever ends first would otherwise go first.
in_place: ContextVar[bool] = ContextVar("in_place", default=False)


class WorkFailed(Exception):
    """What the work raised is the cause, whatever it was: SystemExit and StopIteration included."""


def _done(work: Callable[[], T]) -> T:
    try:
        return work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise WorkFailed(f"{type(error).__name__}: {error}") from error


async def in_thread(work: Callable[[], T]) -> T:
    """`work()` in a daemon thread: one that hangs would keep an executor, and so the process, from ending.

    Raises `WorkFailed` from what the work raised.
    """
    if in_place.get():
        return _done(work)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Callable[[], T]) -> None:
        if future.done():  # the caller stopped waiting
            return
        try:
            future.set_result(result())
        except WorkFailed as failure:
            future.set_exception(failure)

    def run() -> None:
        try:
            outcome = work()
        except BaseException as error:  # StopIteration and sys.exit() would be swallowed on their way
            failure = WorkFailed(f"{type(error).__name__}: {error}")
            failure.__cause__ = error

            def raised() -> T:
                raise failure

            result = raised
        else:

            def result() -> T:
                return outcome

        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="reward", daemon=True).start()
    return await future
