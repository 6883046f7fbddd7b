"""The gate of a generator: many pass at once, or it is closed and nobody is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


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

    @property
    def open(self) -> bool:
        return self._opened_once and not self._closed and self.quarantine is None

    @asynccontextmanager
    async def pass_through(self, timeout_s: float, before_first: bool = False) -> AsyncIterator[None]:
        """Wait while the gate is closed, then be inside. `before_first`: do not wait for a first version.

        Raises `Quarantined`, or TimeoutError when it stays closed.
        """

        def may_decide() -> bool:
            return self.quarantine is not None or (not self._closed and (self._opened_once or before_first))

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(may_decide), timeout_s)
            except TimeoutError:
                state = "is taking over weights" if self._closed else "has not adopted a weight version"
                raise TimeoutError(f"generator {self._name!r} {state}; waited {timeout_s:g} s") from None
            if self.quarantine is not None:
                raise Quarantined(f"generator {self._name!r} is quarantined: {self.quarantine}")
            self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            await self._notify()

    @asynccontextmanager
    async def closed(self, timeout_s: float) -> AsyncIterator[None]:
        """Close, wait until nobody is inside, and open again afterwards (a quarantine keeps it shut).

        Raises TimeoutError when those inside do not leave; the gate is then as before.
        """
        self._closed = True
        entered = False
        try:
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait_for(lambda: self.inside == 0), timeout_s)
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
