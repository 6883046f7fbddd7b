"""Pictures turned, and cut into shuffled patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.types import Media


@dataclass(frozen=True)
class Rotate:
    """Turns the picture about its centre, by `degrees` to the side that the seed picks; corners go black.

    CHiP (third-party note) compares rotation with other kinds; its angle is not known, so the default is
    inferred. Raises ValueError for an angle outside 0..180.
    """

    degrees: float = 90.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"Rotate(degrees=...): expected 0 to 180, got {self.degrees}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        angle = self.degrees if np.random.default_rng(seed).integers(2) else -self.degrees
        return within(media, mask, recorded(self, seed, angle=angle), lambda p: turned(p, angle))

    @property
    def strength(self) -> float:
        """The angle in degrees."""
        return self.degrees


def turned(picture: Picture, angle: float) -> Picture:
    """The picture turned by an angle in degrees, positive against the clock; its size stays."""
    import cv2

    library: Any = cv2
    height, width = picture.shape[:2]
    matrix = library.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return library.warpAffine(picture, matrix, (width, height))


@dataclass(frozen=True)
class PatchShuffle:
    """Cuts the picture into `grid` x `grid` equal patches and puts them back in random order.

    Rows and columns that are left over at the far edges stay. A picture with fewer pixels than patches on a
    side is cut into its pixels. Raises ValueError for a grid below 1.
    """

    grid: int = 4

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"PatchShuffle(grid=...): expected at least 1 patch a side, got {self.grid}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def shuffled(picture: Picture) -> Picture:
            rows, columns = (min(self.grid, side) for side in picture.shape[:2])
            high, wide = picture.shape[0] // rows, picture.shape[1] // columns
            area = picture[: rows * high, : columns * wide]
            patches = area.reshape(rows, high, columns, wide, 3).swapaxes(1, 2).reshape(-1, high, wide, 3)
            patches = patches[np.random.default_rng(seed).permutation(rows * columns)]
            result = picture.copy()
            back = patches.reshape(rows, columns, high, wide, 3).swapaxes(1, 2)
            result[: rows * high, : columns * wide] = back.reshape(area.shape)
            return result

        return within(media, mask, recorded(self, seed), shuffled)

    @property
    def strength(self) -> float:
        """Patches on a side; 1 changes nothing."""
        return float(self.grid)
