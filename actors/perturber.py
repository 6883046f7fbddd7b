"""A perturber: damages media in a thread, so that a pool of them keeps pixels away from scorers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pipelines.perturbations.base import Perturbation, RegionSelector, damage
from pipelines.types import Media


class Perturber:
    """A plain class without state; selectors that hold models cache them per process."""

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
        return await asyncio.to_thread(damage, media, perturbation, selector, answer, gold, seed)
