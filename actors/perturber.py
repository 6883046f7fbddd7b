"""A perturber: damages media in a thread, so that a pool of them keeps pixels away from scorers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from pipelines.perturbations.base import Perturbation, RegionSelector, damage
from pipelines.types import Media


class Perturber:
    """A plain class. It counts what it did; selectors that hold models should cache them per process."""

    def __init__(self) -> None:
        self._damaged = 0
        self._fallbacks = 0
        self._busy_s = 0.0

    async def damage(
        self,
        media: Media,
        perturbation: Perturbation,
        selector: RegionSelector | None,
        answer: str,
        gold: Mapping[str, Any],
        seed: int,
    ) -> Media:
        """The media with the regions damaged that `answer` speaks of; see `pipelines.perturbations`."""
        damaged, seconds = await asyncio.to_thread(_timed, media, perturbation, selector, answer, gold, seed)
        self._damaged += 1
        self._fallbacks += fell_back(damaged)
        self._busy_s += seconds
        return damaged

    async def stats(self) -> dict[str, float]:
        """Media damaged, how often a selector found no region, and busy seconds."""
        return {"damaged": self._damaged, "fallbacks": self._fallbacks, "busy_s": self._busy_s}


def fell_back(media: Media) -> bool:
    """Whether a selector found nothing, so that the whole media was damaged."""
    return media.op is not None and bool(media.op.params.get("fallback", False))


def _timed(
    media: Media,
    perturbation: Perturbation,
    selector: RegionSelector | None,
    answer: str,
    gold: Mapping[str, Any],
    seed: int,
) -> tuple[Media, float]:
    began = time.perf_counter()
    damaged = damage(media, perturbation, selector, answer, gold, seed)
    return damaged, time.perf_counter() - began
