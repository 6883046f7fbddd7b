"""Objects removed by filling their region from around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.perturbations.fill import painted
from pipelines.types import Media


@dataclass(frozen=True)
class Inpaint:
    """Fills the region from what surrounds it: OpenCV's fast marching (Telea) or Navier-Stokes.

    AdaViP (third-party note) removes one object per candidate with LaMa, a network that invents texture;
    these methods only continue colours and edges, which is plainer on large regions. `radius` is in pixels.
    Where nothing surrounds the region, because it is the whole picture, the mean colour is painted.

    Raises ValueError for a radius that is not positive or a method that does not exist.
    """

    radius: float = 3.0
    method: Literal["telea", "navier_stokes"] = "telea"

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"Inpaint(radius=...): expected more than 0 pixels, got {self.radius}")
        if self.method not in ("telea", "navier_stokes"):
            raise ValueError(f"Inpaint(method=...): expected 'telea' or 'navier_stokes', got {self.method!r}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def removed(picture: Picture) -> Picture:
            region = np.ones(picture.shape[:2], dtype=np.bool_) if mask is None else mask
            # In a picture one pixel thin OpenCV leaves memory as it found it.
            lonely = region.all() or 1 in picture.shape[:2]
            return painted(picture, region, "mean") if lonely else self._filled(picture, region)

        return within(media, mask, recorded(self, seed), removed)

    def _filled(self, picture: Picture, region: Mask) -> Picture:
        import cv2

        library: Any = cv2
        method = library.INPAINT_TELEA if self.method == "telea" else library.INPAINT_NS
        return library.inpaint(picture, region.astype(np.uint8), self.radius, method)

    @property
    def strength(self) -> float:
        """Always 1: nothing of the region is left."""
        return 1.0
