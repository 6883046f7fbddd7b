"""A perturber: damages media in a thread, so that a pool of them keeps pixels away from scorers."""

from __future__ import annotations

import asyncio

from pipelines.perturbations.base import DamageRequest, damage
from pipelines.types import Media


class Perturber:
    """A plain class without state; selectors that hold models cache them per process."""

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        """The media with the regions damaged that the answer speaks of; see `pipelines.perturbations`."""
        return await asyncio.to_thread(damage, media, request)
