"""The publisher: owns the bytes of the newest weight versions and hands them out in order.

1. `publish` refuses an older attempt and a number that does not grow.
2. The publisher owns what it hands out (`put` runs in its process): a learner that dies takes nothing along.
3. `next` waits for the oldest version a taker has not seen, so that every version is proved, none skipped.
4. A reference that the learner moved travels with every later version, with a number that tells a new one.
5. Only the last `keep` versions are held: a taker further behind gets the oldest that is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipelines.types import WeightVersion

Tensors = Mapping[str, np.ndarray]


class Publisher:
    """One weight stream. `put` turns tensors into what takers receive (`ray.put` where it is placed)."""

    def __init__(self, attempt: int, put: Callable[[Tensors], Any] | None = None, keep: int = 4) -> None:
        self._attempt = attempt
        self._put = put or (lambda tensors: tensors)
        self._keep = keep
        self._held: dict[int, tuple[WeightVersion, list[Any]]] = {}
        self._reference: list[Any] = []  # how many there were, and the newest
        self._changed = asyncio.Condition()

    async def publish(self, version: WeightVersion, tensors: Tensors) -> None:
        """Take over a version. Raises ValueError for an older attempt, a stale number or missing tensors."""
        if version.attempt != self._attempt:
            raise ValueError(
                f"weights of attempt {version.attempt} refused: attempt {self._attempt} is running"
            )
        newest = max(self._held, default=-1)
        if version.number <= newest:
            raise ValueError(
                f"weight version {version.number} refused: version {newest} is already published"
            )
        if set(tensors) != set(version.manifest):
            odd = sorted(set(tensors) ^ set(version.manifest))[:3]
            raise ValueError(f"weight version {version.number}: tensors and manifest differ in {odd}")
        async with self._changed:
            self._held[version.number] = (version, [self._put(tensors), *self._reference])
            for number in sorted(self._held)[: -self._keep]:
                del self._held[number]
            self._changed.notify_all()

    async def refer(self, attempt: int, weights: Mapping[str, Any]) -> None:
        """The reference's weights from the next version on. Raises ValueError for an older attempt."""
        if attempt != self._attempt:
            raise ValueError(f"a reference of attempt {attempt} refused: attempt {self._attempt} is running")
        self._reference = [1 + (self._reference[0] if self._reference else 0), self._put(weights)]

    async def next(self, after: int, timeout_s: float) -> tuple[WeightVersion, list[Any]] | None:
        """The oldest held version above `after`, and in a list, so that a Ray reference stays one: its
        tensors, and where the learner's reference is not the run's model any more, its number and weights.

        None when nothing was published within `timeout_s`.
        """

        def newer() -> list[int]:
            return [number for number in self._held if number > after]

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(newer), timeout_s)
            except TimeoutError:
                return None
            return self._held[min(newer())]

    async def newest(self) -> int:
        """Number of the newest published version, -1 before the first."""
        return max(self._held, default=-1)
