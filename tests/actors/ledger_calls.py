"""Calls to a ledger, one after the other, and the values that they take."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.ledger import Ledger
from pipelines.admission import Admission, Stretch
from pipelines.types import Comparison, Fault, Group, Lease, Shard


class Waits(Exception):
    """The call waits for another one."""


LOOP = asyncio.new_event_loop()


def now(coroutine: Any) -> Any:
    """The result of a call that does not have to wait for another one."""

    async def brief() -> Any:
        task = asyncio.ensure_future(coroutine)
        for _ in range(3):
            await asyncio.sleep(0)
            if task.done():
                return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise Waits

    return LOOP.run_until_complete(brief())


def waits(coroutine: Any) -> bool:
    try:
        now(coroutine)
    except Waits:
        return True
    return False


def sizes(groups: int, sync_every: int, lag: int, *lasts: int, **reuse: Any) -> Admission:
    """The bound of a run whose stages end at the steps `lasts`."""
    stages = tuple(Stretch(last=last, max_lag=lag, **reuse) for last in lasts)
    return Admission(sync_every=sync_every, groups_per_step=groups, stages=stages)


def make(groups: int = 2, lag: int = 1, sync_every: int = 1, steps: int = 100, **more: Any) -> Ledger:
    return Ledger("run", 1, sizes(groups, sync_every, lag, steps), **more)


def comparison(name: str) -> Comparison:
    return Comparison(id=name, prompts=(), responses=(), candidates=(), preferences=())


def group(lease: Lease, version: int = 0, comparisons: int = 1, **more: Any) -> Group:
    made = tuple(comparison(f"{lease.group}/{i}") for i in range(comparisons))
    return Group(id=lease.group, fence=lease.fence, comparisons=made, media={}, version=version, **more)


def fault(lease: Lease, retry: bool = True, reason: str = "scorer_died") -> Fault:
    return Fault(group=lease.group, reason=reason, role="scorer", detail="node a", retry=retry)


def told(ledger: Ledger, event: str) -> list[dict[str, Any]]:
    """The ledger's events of one kind."""
    return [line for line in now(ledger.events(0)) if line["event"] == event]


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def issue(ledger: Ledger, cursor: int) -> Lease:
    lease = now(ledger.issue(f"p{cursor}", 0, cursor, 0))
    assert lease is not None
    return lease


def fill(ledger: Ledger, cursors: range, version: int = 0) -> list[Lease]:
    leases = [issue(ledger, cursor) for cursor in cursors]
    for lease in leases:
        assert now(ledger.accept(group(lease, version))).accepted
    return leases


def pull(ledger: Ledger, step: int, rank: int = 0, world: int = 1) -> Shard:
    return now(ledger.pull(1, step, rank, world))


def train(ledger: Ledger, step: int) -> Shard:
    shard = pull(ledger, step)
    now(ledger.trained(1, step, {"loss": 1.0}))
    return shard


def counts(ledger: Ledger) -> dict[str, Any]:
    ledger.check()
    return now(ledger.counts())
