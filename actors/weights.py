"""The publisher: owns the bytes of the newest weight versions and hands them out in order.

1. `publish` refuses an older attempt and a number that does not grow.
2. The publisher owns what it hands out (`put` runs in its process): a learner that dies takes nothing along.
3. `next` waits for the oldest version a taker has not seen, so that every version is proved, none skipped.
4. Only the last `keep` versions are held: a taker further behind gets the oldest that is left.
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
        self._held: dict[int, tuple[WeightVersion, Any]] = {}
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
            self._held[version.number] = (version, self._put(tensors))
            for number in sorted(self._held)[: -self._keep]:
                del self._held[number]
            self._changed.notify_all()

    async def next(self, after: int, timeout_s: float) -> tuple[WeightVersion, list[Any]] | None:
        """The oldest held version above `after` with its tensors (in a list, so that a reference stays one).

        None when nothing was published within `timeout_s`.
        """

        def newer() -> list[int]:
            return [number for number in self._held if number > after]

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(newer), timeout_s)
            except TimeoutError:
                return None
            version, tensors = self._held[min(newer())]
            return version, [tensors]

    async def newest(self) -> int:
        """Number of the newest published version, -1 before the first."""
        return max(self._held, default=-1)
