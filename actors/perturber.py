"""A perturber: damages media in a thread, so that a pool of them keeps pixels away from scorers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pipelines.perturbations.base import DamageRequest, damage
from pipelines.types import Media


class Perturber:
    """A plain class; selectors that hold models cache them per process."""

    def __init__(self) -> None:
        self._begun = self._ended = 0  # damages

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        """The media with the regions damaged that the answer speaks of; see `pipelines.perturbations`."""
        self._begun += 1
        try:
            return await asyncio.to_thread(damage, media, request)
        finally:
            self._ended += 1

    async def health(self) -> dict[str, Any]:
        """Answers at any time, also while it damages."""
        in_flight = self._begun - self._ended
        return {"pid": os.getpid(), "alive": True, "in_flight": in_flight, "progress": self._ended}
