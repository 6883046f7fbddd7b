"""Detail taken away: Gaussian blur and lost resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.types import Media


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with deviation `sigma` in pixels; 0 leaves the picture as it is.

    Raises ValueError for a sigma that is negative or not finite.
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < np.inf:
            raise ValueError(f"Blur(sigma=...): expected a finite number of at least 0, got {self.sigma}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        return within(media, mask, recorded(self, seed), lambda picture: blurred(picture, self.sigma))

    @property
    def strength(self) -> float:
        """Sigma in pixels."""
        return self.sigma


def blurred(picture: Picture, sigma: float) -> Picture:
    import cv2

    library: Any = cv2
    return library.GaussianBlur(picture, (0, 0), sigma) if sigma > 0 else picture


@dataclass(frozen=True)
class Downscale:
    """Makes the picture `factor` times smaller (mean over areas) and enlarges it again (bilinear).

    Raises ValueError for a factor below 1.
    """

    factor: float = 4.0

    def __post_init__(self) -> None:
        if not 1 <= self.factor < np.inf:
            raise ValueError(f"Downscale(factor=...): expected at least 1, got {self.factor}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        return within(media, mask, recorded(self, seed), self._coarse)

    def _coarse(self, picture: Picture) -> Picture:
        import cv2

        library: Any = cv2
        height, width = picture.shape[:2]
        size = max(round(width / self.factor), 1), max(round(height / self.factor), 1)
        small = library.resize(picture, size, interpolation=library.INTER_AREA)
        return library.resize(small, (width, height), interpolation=library.INTER_LINEAR)

    @property
    def strength(self) -> float:
        """The factor; 1 changes nothing."""
        return self.factor
