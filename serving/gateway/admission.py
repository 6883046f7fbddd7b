"""How much one gateway takes on: turns with a bounded queue, and a budget for the bodies it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.settings import LoadSettings

MIB = 2**20


class Admission:
    """Belongs to one event loop. What is over the bounds is refused with 503 and Retry-After."""

    def __init__(self, load: LoadSettings, metrics: Metrics) -> None:
        self._load = load
        self._metrics = metrics
        self._turns = asyncio.Semaphore(load.concurrent)
        self._waiting = 0
        self._held = 0  # bytes

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, first come first served."""
        await self._wait()
        self._metrics.in_flight.inc()
        try:
            yield
        finally:
            self._metrics.in_flight.dec()
            self._turns.release()

    async def _wait(self) -> None:
        if self._turns.locked() and self._waiting >= self._load.queue:
            raise ApiError(503, "the server is busy and its queue is full; try again", retry_after_s=1)
        self._waiting += 1
        self._metrics.queued.inc()
        try:
            async with asyncio.timeout(self._load.queue_timeout_s):
                await self._turns.acquire()
        except TimeoutError:
            raise ApiError(503, "the server stayed busy for too long; try again", retry_after_s=5) from None
        finally:
            self._waiting -= 1
            self._metrics.queued.dec()

    @contextmanager
    def bytes(self) -> Iterator[Held]:
        """What is held through it is given back at the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            self._held -= held.size

    def hold(self, size: int) -> None:
        if self._held + size > self._load.bodies_mib * MIB:
            raise ApiError(503, "the server holds as many requests as it can; try again", retry_after_s=1)
        self._held += size


class Held:
    """Bytes of one request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def add(self, size: int) -> None:
        """Raises ApiError (503) when all requests together hold too much."""
        self._admission.hold(size)
        self.size += size

    def passing(self) -> AbstractContextManager[Held]:
        """For bytes that the request does not hold until its end."""
        return self._admission.bytes()
