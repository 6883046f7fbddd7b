"""Random crops of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.types import Media

Box = tuple[int, int, int, int]  # (x0, y0, x1, y1), pixels; x1 and y1 exclusive
_WIDEST = 4 / 3  # width over height of the crop relative to the picture; the narrowest is its inverse


@dataclass(frozen=True)
class Crop:
    """Keeps a random box with `low` to `high` of the area and enlarges it to the size of the picture.

    mDPO (arXiv 2406.11839) makes its rejected image so, with 1 to 20 percent of the area *kept* (code read).
    The aspect ratio of the crop (3:4 to 4:3 times the picture's) and bilinear enlargement are inferred.

    Raises ValueError unless 0 < low <= high <= 1.
    """

    low: float = 0.01  # smallest share of the area that is kept
    high: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"Crop: expected 0 < low <= high <= 1, got low={self.low}, high={self.high}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        height, width = media.payload.shape[:2] if media.payload.ndim >= 2 else (1, 1)
        box = self.box(width, height, seed)
        return within(media, mask, recorded(self, seed, box=list(box)), lambda p: enlarged(p, box))

    @property
    def strength(self) -> float:
        """The share of the area that is lost on average."""
        return 1 - (self.low + self.high) / 2

    def box(self, width: int, height: int, seed: int) -> Box:
        """A box of at least one pixel; its area is in [low, high] up to rounding to whole pixels."""
        rng = np.random.default_rng(seed)
        share = rng.uniform(self.low, self.high)
        # Only aspects whose box fits: a share s and a relative aspect a need s * a <= 1 and s / a <= 1.
        aspect = math.exp(rng.uniform(-math.log(_WIDEST), math.log(_WIDEST)))
        aspect = min(max(aspect, share), 1 / share)
        w = min(max(round(width * math.sqrt(share * aspect)), 1), width)
        h = min(max(round(height * math.sqrt(share / aspect)), 1), height)
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        return x, y, x + w, y + h


def enlarged(picture: Picture, box: Box) -> Picture:
    """The part of a picture in a box at the size of the whole."""
    from PIL import Image

    height, width = picture.shape[:2]
    part = Image.fromarray(picture).crop(box)
    return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
