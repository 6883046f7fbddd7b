"""Who passes the gate of a generator, and who has to leave."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from actors.gate import Gate, Quarantined
from pipelines.loop import RoleFailed

pytestmark = pytest.mark.timeout(20)


async def opened() -> Gate:
    gate = Gate("g")
    async with gate.closed(1):
        pass
    return gate


async def until_inside(gate: Gate, count: int) -> None:
    while gate.inside != count:
        await asyncio.sleep(0)


async def inside(gate: Gate, leave: asyncio.Event, abortable: bool) -> str:
    async with gate.pass_through(5, abortable=abortable):
        await leave.wait()
    return "done"


def test_only_those_leave_who_may_be_aborted_and_the_gate_waits_for_the_others():
    async def scenario() -> None:
        gate, leave = await opened(), asyncio.Event()
        patient = asyncio.create_task(inside(gate, leave, False))
        hasty = [asyncio.create_task(inside(gate, leave, True)) for _ in range(3)]
        await until_inside(gate, 4)

        async def sync() -> int:
            async with gate.closed(5, gate.abort):
                return gate.inside

        syncing = asyncio.create_task(sync())
        ended = await asyncio.gather(*hasty, return_exceptions=True)
        assert [error.reason for error in ended if isinstance(error, RoleFailed)] == ["aborted_for_sync"] * 3
        assert all(not task.cancelled() for task in hasty) and not syncing.done() and gate.inside == 1
        leave.set()
        assert await patient == "done" and await syncing == 0 and gate.aborted == 3 and gate.open

    asyncio.run(scenario())


def test_a_caller_that_goes_away_is_cancelled_and_not_aborted():
    async def scenario() -> None:
        gate = await opened()
        task = asyncio.create_task(inside(gate, asyncio.Event(), True))
        await until_inside(gate, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.inside == 0 and gate.aborted == 0

    asyncio.run(scenario())


def test_a_caller_that_goes_away_while_it_is_aborted_stays_cancelled():
    async def scenario() -> None:
        gate = await opened()
        task = asyncio.create_task(inside(gate, asyncio.Event(), True))
        await until_inside(gate, 1)
        gate.abort()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.inside == 0

    asyncio.run(scenario())


def test_an_answer_that_was_there_already_is_not_lost_and_the_next_one_can_be_aborted():
    """The same task asks twice, as a scorer in one process does; the first abort came too late."""

    async def scenario() -> None:
        gate, leave, once = await opened(), asyncio.Event(), asyncio.Event()

        async def twice() -> str:
            async with gate.pass_through(5, abortable=True):
                with contextlib.suppress(asyncio.CancelledError):  # as wait_for does when its result is there
                    await leave.wait()
            once.set()
            return await inside(gate, asyncio.Event(), True)

        task = asyncio.create_task(twice())
        await until_inside(gate, 1)
        gate.abort()
        await once.wait()
        await until_inside(gate, 1)
        assert gate.aborted == 0
        gate.abort()
        with pytest.raises(RoleFailed, match="aborted_for_sync"):
            await task

    asyncio.run(scenario())


def test_those_who_wait_learn_of_a_quarantine():
    async def scenario() -> None:
        gate = Gate("g")
        waiting = asyncio.create_task(inside(gate, asyncio.Event(), False))
        await asyncio.sleep(0)
        await gate.shut("the bytes are wrong")
        with pytest.raises(Quarantined, match="the bytes are wrong"):
            await waiting

    asyncio.run(scenario())
