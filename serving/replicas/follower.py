"""A replica's own task: it asks which version to serve, and changes over when it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from serving.wire import Standing, Version

ASK_S = 1.0  # after an answer that took no time, and after one that failed
CHANGING_S = 0.1  # during a change-over: the next replica waits for word that it has ended
CALL_S = 10.0  # for one question

Wanted = Callable[[Standing], Awaitable[Version | None]]

log = logging.getLogger(__name__)


class Replica(Protocol):
    async def standing(self) -> Standing: ...

    async def swap(self, version: Version) -> Standing: ...


async def first_version(wanted: Wanted, starting: Standing) -> Version:
    """The version to start with; waits for as long as nobody answers."""
    while True:
        told = await _ask(wanted, starting)
        if told is not None:
            return told
        await asyncio.sleep(ASK_S)


async def first_intact(
    wanted: Wanted, starting: Standing, verify: Callable[[Version], Awaitable[None]]
) -> tuple[Version, Standing]:
    """The first named version that `verify` raises nothing for, and the standing that says what was refused.

    Raises what `verify` raised once the conductor has nothing else to name.
    """
    while True:
        told = await first_version(wanted, starting)
        try:
            await verify(told)
        except Exception as error:
            if told.id in starting.refused:
                raise
            log.error("%s is not started with: %s", told.id, error)
            starting = replace(starting, refused=(*starting.refused, told.id))
        else:
            return told, starting


class Follower:
    """Keeps asking, also while a change-over takes its time: whoever is silent counts as gone.

    `wanted` asks the conductor. A failed change-over is the replica's to report in its standing.
    """

    def __init__(self, replica: Replica, wanted: Wanted) -> None:
        self._replica, self._wanted = replica, wanted
        self._swap: asyncio.Task[Standing] | None = None

    async def follow(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                told = await _ask(self._wanted, await self._replica.standing())
                idle = self._swap is None or self._swap.done()
                if told is not None and idle and (await self._replica.standing()).version != told.id:
                    self._swap = asyncio.create_task(self._replica.swap(told))
                    self._swap.add_done_callback(_heard)
                changing = self._swap is not None and not self._swap.done()
                await asyncio.sleep(CHANGING_S if changing else ASK_S)
        finally:
            if self._swap is not None:
                self._swap.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await self._swap


async def _ask(wanted: Wanted, standing: Standing) -> Version | None:
    try:
        async with asyncio.timeout(CALL_S):  # wait_for may lose a cancellation that meets the answer
            return await wanted(standing)
    except Exception as error:  # a conductor that restarts; the version that is served stays
        log.warning("the conductor does not answer: %s", type(error).__name__)
        return None


def _heard(swap: asyncio.Task[Standing]) -> None:
    if not swap.cancelled() and (error := swap.exception()) is not None:
        log.error("the change-over failed: %s", error)
