"""The gate of a generator: many pass at once, or it is closed and nobody is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from actors.load import Load
from pipelines.loop import RoleFailed


class Quarantined(RuntimeError):
    """The generator holds weights that it could not prove, so it produces nothing."""


class Gate:
    """Opens with the first proved version. With a reason in `quarantine`, passing raises `Quarantined`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = asyncio.Condition()
        self._closed = False
        self._opened_once = False
        self.quarantine: str | None = None
        self.inside = 0
        self.aborted = 0  # requests that had to leave
        self.load = Load()
        self._abortable: set[asyncio.Task[object]] = set()
        self._leaving: set[asyncio.Task[object]] = set()

    @property
    def open(self) -> bool:
        return self._opened_once and not self._closed and self.quarantine is None

    @property
    def closing(self) -> bool:
        """Whether weights are being taken over, or wait to be."""
        return self._closed

    @asynccontextmanager
    async def pass_through(
        self, timeout_s: float, before_first: bool = False, abortable: bool = False
    ) -> AsyncIterator[None]:
        """Wait while the gate is closed, then be inside. `before_first`: do not wait for a first version.

        Raises `Quarantined`, or TimeoutError when it stays closed, and RoleFailed "aborted_for_sync" when
        `abort` met it inside and it is `abortable`.
        """

        def may_decide() -> bool:
            return self.quarantine is not None or (not self._closed and (self._opened_once or before_first))

        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):  # in Python 3.11 wait_for may swallow a cancellation
                    await self._changed.wait_for(may_decide)
            except TimeoutError:
                state = "is taking over weights" if self._closed else "has not adopted a weight version"
                raise TimeoutError(f"generator {self._name!r} {state}; waited {timeout_s:g} s") from None
            if self.quarantine is not None:
                raise Quarantined(f"generator {self._name!r} is quarantined: {self.quarantine}")
            self.inside += 1
            mark = self.load.enter()
        try:
            if abortable:
                async with self._leaving_when_told():
                    yield
            else:
                yield
        finally:
            self.inside -= 1
            self.load.leave(mark)
            await self._notify()

    @asynccontextmanager
    async def _leaving_when_told(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._abortable.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._leaving:
                raise
            self._leaving.remove(task)
            if task.uncancel() > 0:  # somebody else cancels it as well
                raise
            self.aborted += 1
            detail = f"generator {self._name!r} takes over weights; the answer was under way"
            raise RoleFailed("aborted_for_sync", "generator", detail) from None
        finally:
            self._abortable.remove(task)
            if task in self._leaving:  # it was done already
                self._leaving.remove(task)
                task.uncancel()

    def abort(self) -> None:
        """Make those inside leave who may be aborted."""
        for task in self._abortable - self._leaving:
            self._leaving.add(task)
            task.cancel()

    async def shut(self, quarantine: str) -> None:
        """Quarantine it, and tell those who wait."""
        self.quarantine = quarantine
        await self._notify()

    @asynccontextmanager
    async def closed(self, timeout_s: float, hasten: Callable[[], None] | None = None) -> AsyncIterator[None]:
        """Close, wait until nobody is inside, and open again afterwards (a quarantine keeps it shut).

        `hasten`: called once it is closed, to make those inside leave sooner. Raises TimeoutError when they
        do not; the gate is then as before.
        """
        self._closed = True
        entered = False
        try:
            if hasten is not None:
                hasten()
            async with self._changed:
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._changed.wait_for(lambda: self.inside == 0)
                except TimeoutError:
                    raise TimeoutError(
                        f"generator {self._name!r}: {self.inside} requests did not end within {timeout_s:g} s"
                    ) from None
            entered = True
            yield
        finally:
            self._closed = False
            self._opened_once = self._opened_once or (entered and self.quarantine is None)
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
