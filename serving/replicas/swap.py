"""How a replica changes over to another version: its own gate, and what is done while that is closed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from serving.wire import Standing, State, Version

DRAIN_S = 120.0  # for requests under way; nothing is cut off for a change-over
WAIT_S = 150.0  # how long a request waits at a closed gate
RETRY_S = 60.0  # before a version that failed is tried again

log = logging.getLogger(__name__)


class Closed(Exception):
    """The gate did not open in time, or will not open again."""


class NotChanged(Exception):
    """The change-over failed and the version from before serves; the message says why."""


class Quarantined(Exception):
    """Neither version could be proved: nothing may be served by this replica any more."""


class Gate:
    """Requests pass while it is open; each holds it from its first to its last byte."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._opened = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._for_good = False

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Raises Closed when the gate stays closed for WAIT_S."""
        await self._await_open()
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def _await_open(self) -> None:
        until = time.monotonic() + WAIT_S
        while not self._opened.is_set():  # it may close again before a waiting request gets its turn
            if self._for_good:
                raise Closed("the replica is being replaced")
            try:
                await asyncio.wait_for(self._opened.wait(), until - time.monotonic())
            except TimeoutError:
                raise Closed("the replica changes its version") from None
        if self._for_good:
            raise Closed("the replica is being replaced")

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._opened.clear()

    def close_for_good(self) -> None:
        """Requests that wait are told so at once."""
        self._for_good = True
        self._opened.set()

    async def drained(self, timeout_s: float) -> bool:
        """Whether the requests under way ended in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class Engine(Protocol):
    async def verify(self, version: Version) -> None:
        """Raises when the files are not what the version says, or cannot be loaded in place. Reads only."""
        ...

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        """Load the version and prove it; the proof's facts. Raises when it cannot be proved."""
        ...


class Swapper:
    """One replica's version and standing. Nobody but it loads weights or moves the gate."""

    def __init__(
        self,
        engine: Engine,
        *,
        replica: str,
        slot: str,
        drain_s: float = DRAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._replica, self._slot = engine, replica, slot
        self._drain_s, self._clock = drain_s, clock
        self.gate = Gate()
        self.version: Version | None = None
        self.proof: Mapping[str, Any] = {}
        self._state: State = "loading"
        self._detail = ""
        self._closed_at, self._closed_s = clock(), 0.0
        self._failed: dict[str, float] = {}  # version -> when
        self._one = asyncio.Lock()

    @property
    def standing(self) -> Standing:
        return Standing(
            replica=self._replica,
            slot=self._slot,
            version=None if self.version is None else self.version.id,
            state=self._state,
            in_flight=self.gate.in_flight,
            detail=self._detail,
            closed_s=self._closed_s,
            refused=tuple(one for one in self._failed if self._waits(one)),
        )

    async def begin(self, version: Version) -> None:
        """Prove the version that the engine was started with, and open. Raises when it cannot be proved.

        Its files were verified before the engine was started.
        """
        self._serve(version, await self._engine.adopt(version))

    async def swap(self, version: Version) -> Standing:
        """Change over. A failure is told in the standing; the replica then serves what it served before.

        A version that failed is not tried again for RETRY_S: whoever wants it asks every second.
        """
        async with self._one:
            held = self.version
            if self._state != "serving" or held is None or held.id == version.id or self._waits(version.id):
                return self.standing
            try:
                await self._change(held, version)
            except NotChanged as error:
                self._failed[version.id] = self._clock()
                self._detail = f"{version.id}: {error}"
                log.error("%s keeps %s; %s", self._replica, held.id, self._detail)
            return self.standing

    def _waits(self, version: str) -> bool:
        failed = self._failed.get(version)
        return failed is not None and self._clock() - failed < RETRY_S

    async def _change(self, held: Version, version: Version) -> None:
        try:
            await self._engine.verify(version)  # while requests are still answered: hashing takes its time
        except Exception as error:
            raise NotChanged(f"not loaded: {error}") from error
        self._state, self._closed_at = "swapping", self._clock()
        self.gate.close()
        try:
            if not await self.gate.drained(self._drain_s):
                raise NotChanged(f"requests under way did not end within {self._drain_s:.0f} s")
        except BaseException:  # a cancelled change-over has not touched the weights yet either
            self._state = "serving"
            self.gate.open()
            raise
        try:
            await self._load(held, version)
        except BaseException as error:
            if not isinstance(error, NotChanged):  # cancelled in the middle: no one knows what was loaded
                self._quarantine(f"{type(error).__name__} while weights were loaded")
            raise

    async def _load(self, held: Version, version: Version) -> None:
        try:
            self._serve(version, await self._engine.adopt(version))
        except Exception as error:
            log.error("%s: %s is not proved: %s", self._replica, version.id, error)
            try:
                self._serve(held, await self._engine.adopt(held))
            except Exception as again:
                log.error("%s: nor is %s again: %s", self._replica, held.id, again)
                self._quarantine(f"neither {version.id} nor {held.id} could be proved")
                return
            raise NotChanged(f"not proved: {error}") from error

    def _serve(self, version: Version, proof: Mapping[str, Any]) -> None:
        """The version is set before the gate opens, so no answer names another."""
        self.version, self.proof = version, proof
        self._state, self._detail = "serving", ""
        self._closed_s = self._clock() - self._closed_at
        self.gate.open()

    def _quarantine(self, why: str) -> None:
        self._state, self._detail = "quarantined", why
        self.gate.close_for_good()

    def require_sound(self) -> None:
        """Raises Quarantined; for health checks."""
        if self._state == "quarantined":
            raise Quarantined(f"{self._replica}: {self._detail}")
