"""Regions that need no keywords: random ones, maps of heat or attention, and what is made from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.perturbations.base import Mask, Regions, RegionSelector
from pipelines.types import Media

Map = NDArray[Any]  # [h, w] of any size, finite; larger means more of it
HeatSource = Callable[[Media, str, Mapping[str, Any]], Map | None]  # (media, answer, gold); None: none there
Attend = Callable[[Media, str], Map]  # (media, answer), e.g. the attention of the answer's tokens
_SALT = 2  # keeps a selector's draws apart from those of the perturbation, which has the same seed


@dataclass(frozen=True)
class RandomFraction:
    """Exactly this share of the pixels, up to rounding, at random: the control for any chosen region.

    MFPO compares key regions with a random region of 20% (third-party note; its shape is not known). The
    region is the union of random rectangles of about a quarter of that area or, with `patch`, of blocks of
    a grid; the last one is cut where the share is reached.

    Raises ValueError for a share outside 0..1 or a patch below 1.
    """

    share: float = 0.2
    patch: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"RandomFraction(share=...): expected more than 0, at most 1, got {self.share}")
        if self.patch is not None and self.patch < 1:
            raise ValueError(f"RandomFraction(patch=...): expected at least 1 pixel, got {self.patch}")

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions:
        height, width = media.payload.shape[:2]
        rng = np.random.default_rng([seed, _SALT])
        boxes = (
            self._rectangles(height, width, rng) if self.patch is None else self._blocks(height, width, rng)
        )
        mask = np.zeros((height, width), dtype=np.bool_)
        wanted = max(round(self.share * mask.size), 1)
        while (missing := wanted - int(mask.sum())) > 0:
            box = np.zeros_like(mask)
            box[next(boxes)] = True
            mask.flat[np.flatnonzero(box & ~mask)[:missing]] = True
        return Regions(mask=mask, facts={"region_share": self.share})

    def _rectangles(self, height: int, width: int, rng: np.random.Generator) -> Iterator[tuple[slice, slice]]:
        while True:
            aspect = math.exp(rng.uniform(-math.log(2), math.log(2)))
            h = min(max(round(height * math.sqrt(self.share / 4 * aspect)), 1), height)
            w = min(max(round(width * math.sqrt(self.share / 4 / aspect)), 1), width)
            # Cut at the edges, so that every pixel is as likely as any other.
            y, x = int(rng.integers(1 - h, height)), int(rng.integers(1 - w, width))
            yield slice(max(y, 0), y + h), slice(max(x, 0), x + w)

    def _blocks(self, height: int, width: int, rng: np.random.Generator) -> Iterator[tuple[slice, slice]]:
        side = self.patch or 1
        columns = -(-width // side)
        for place in rng.permutation(-(-height // side) * columns):
            y, x = side * (int(place) // columns), side * (int(place) % columns)
            yield slice(y, y + side), slice(x, x + side)


@dataclass(frozen=True)
class GoldMap:
    """A heat map that the data row holds: `gold[key]`, rows of numbers; None when the row has none."""

    key: str = "heat_map"

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any]) -> Map | None:
        return None if gold.get(self.key) is None else np.array([list(row) for row in gold[self.key]])


@dataclass(frozen=True)
class HeatMap:
    """Where heat is above its mean plus `deviations` times its standard deviation.

    MMedPO's released code takes what is above mean - std of a lesion's heat map (code read), hence -1. Maps
    are stretched to the picture (bilinear). None where the source has no map. Raises ValueError for a map
    that is not two-dimensional and finite.
    """

    source: HeatSource = field(default_factory=GoldMap, repr=False)
    deviations: float = -1.0

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None:
        found = self.source(media, answer, gold)
        if found is None:
            return None
        heat = _stretched(found, media)
        threshold = float(heat.mean() + self.deviations * heat.std())
        return Regions(mask=heat > threshold, facts={"threshold": round(threshold, 6)})


@dataclass(frozen=True)
class Attention:
    """The `share` of the pixels that the answer attends to most.

    Raises ValueError for a share outside 0..1 or a map that is not two-dimensional and finite.
    """

    attend: Attend = field(repr=False)
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Attention(share=...): expected more than 0, at most 1, got {self.share}")

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions:
        attention = _stretched(self.attend(media, answer), media)
        wanted = max(round(self.share * attention.size), 1)
        mask = np.zeros(attention.shape, dtype=np.bool_)
        mask.flat[np.argsort(-attention.ravel(), kind="stable")[:wanted]] = True
        return Regions(mask=mask, facts={"region_share": self.share})


def _stretched(values: Map, media: Media) -> NDArray[np.float64]:
    """A map at the size of the picture."""
    import cv2

    library: Any = cv2
    heat = np.asarray(values, dtype=np.float64)
    if heat.ndim != 2 or heat.size == 0 or not np.isfinite(heat).all():
        raise ValueError(f"a map of regions: expected finite numbers [height, width], got shape {heat.shape}")
    height, width = media.payload.shape[:2]
    if heat.shape == (height, width):
        return heat
    return library.resize(heat, (width, height), interpolation=library.INTER_LINEAR)


@dataclass(frozen=True)
class Union:
    """What any of several selectors finds; None when none finds anything."""

    selectors: tuple[RegionSelector, ...]

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None:
        every = [selector(media, answer, gold, seed) for selector in self.selectors]
        found = [regions for regions in every if regions is not None]
        if not found:
            return None
        mask: Mask = np.logical_or.reduce([regions.mask for regions in found])
        return Regions(mask=mask, facts={"union": [dict(regions.facts) for regions in found]})


@dataclass(frozen=True)
class Complement:
    """All but what a selector finds; None when it finds nothing."""

    selector: RegionSelector

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None:
        found = self.selector(media, answer, gold, seed)
        return None if found is None else Regions(mask=~found.mask, facts={"without": dict(found.facts)})
