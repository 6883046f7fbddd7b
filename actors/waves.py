"""Groups in waves: all that a step lacks is sampled in one go, in the order of the prompts.

Nothing is under way between two steps, so what shares a batch of the generator follows from the weights and
from the ledger alone. That is what lets a resumed run repeat the steps of one that was never interrupted.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import torch

from pipelines.loop import LedgerState, Producer, PromptItem
from pipelines.rollout import derived_seed
from pipelines.types import Fault, Lease, Receipt, Shard

NO_DEADLINE_S = 86_400.0  # one thread waits for nobody but itself; a deadline would only time its own work


class Waves:
    """Fills one step after the other.

    Args:
        size: groups of a step.
        seed: of the run.
        order: puts the prompts of a stage in order; called when it opens.
        stopped: whether the run is asked to end.
    """

    def __init__(
        self,
        prompts: Any,
        producer: Producer,
        ledger: Any,
        *,
        size: int,
        seed: int,
        order: Callable[[int], Awaitable[None]],
        stopped: Callable[[], bool],
    ) -> None:
        self._prompts, self._producer, self._ledger = prompts, producer, ledger
        self._size, self._seed, self._order, self._stopped = size, seed, order, stopped
        self._stage = -1
        self._again: deque[PromptItem] = deque()  # to be issued once more, with the next wave
        self._alone: deque[PromptItem] = deque()  # the same, each in a wave of its own

    async def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        """The groups of `step`, made now. Every step begins with random states of its own."""
        seed_everything(derived_seed(self._seed, "step", step))
        await self._fill()
        return await self._ledger.pull(attempt, step, rank, world)

    async def stop(self) -> None:
        """Nothing is under way between two pulls."""

    async def _fill(self) -> None:
        """Returns when the ledger has the groups of its next step, or takes no more."""
        if self._stopped():  # only here: a step that was begun is finished, or resuming would split its waves
            await self._ledger.stop()
        while True:
            state: LedgerState = await self._ledger.state()
            if state.phase not in ("running", "finishing"):
                return
            if state.stage != self._stage:
                self._stage = state.stage
                await self._order(state.stage)
            waiting = len(self._again) + len(self._alone)  # counted as live: their groups are leased still
            missing = self._size - state.live + waiting
            if missing <= 0:
                return
            items = await self._next(missing)
            if not items:
                return await self._ledger.finish()
            await self._wave(items)

    async def _next(self, limit: int) -> list[PromptItem]:
        if self._alone and not self._again:
            return [self._alone.popleft()]
        items = [self._again.popleft() for _ in range(min(limit, len(self._again)))]
        fresh = limit - len(items) - len(self._alone)
        return items + (list(await self._prompts.next(fresh)) if fresh > 0 else [])

    async def _wave(self, items: Iterable[PromptItem]) -> None:
        leases: list[tuple[Lease, PromptItem]] = []
        for item in items:
            cursor, epoch, prompt_id, _ = item
            lease = await self._ledger.issue(prompt_id, epoch, cursor, 0)
            if lease is not None:  # else it is settled: the run was resumed
                leases.append((lease, item))
        work = (self._producer.produce(lease, item[3]) for lease, item in leases)
        outcomes: list[Receipt | Fault] = await asyncio.gather(*work)
        for outcome, (lease, item) in zip(outcomes, leases, strict=True):
            if isinstance(outcome, Fault):
                verdict = await self._ledger.fail(outcome, lease)
                {"again": self._again, "alone": self._alone}.get(verdict, deque[PromptItem]()).append(item)


def seed_everything(seed: int) -> None:
    """The global generators of torch, numpy and Python, from which a user's reward may draw."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
