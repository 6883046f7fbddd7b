"""Regions, random pixels and growing parts of an object painted in one colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.perturbations.diffuse import CLIP_MEAN
from pipelines.types import Media

Colour = Literal["black", "grey", "white", "mean", "clip_mean"]
_FIXED = {"black": 0, "grey": 128, "white": 255}


def check_colour(colour: str, who: str) -> None:
    if colour not in get_args(Colour):
        raise ValueError(f"{who}(colour=...): expected one of {', '.join(get_args(Colour))}, got {colour!r}")


def colour_of(colour: Colour, picture: Picture) -> NDArray[np.uint8]:
    """RGB, [3]. "mean" is the mean of this whole picture, "clip_mean" what CLIP's processors map to zero."""
    if colour == "mean":
        return np.rint(picture.mean(axis=(0, 1))).astype(np.uint8)
    if colour == "clip_mean":
        return np.rint(CLIP_MEAN * 255).astype(np.uint8)
    return np.full(3, _FIXED[colour], dtype=np.uint8)


def painted(picture: Picture, where: Mask, colour: Colour) -> Picture:
    return np.where(where[..., None], colour_of(colour, picture), picture)


def check_share(share: float, who: str) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{who}(share=...): expected 0 to 1, got {share}")


@dataclass(frozen=True)
class Fill:
    """Paints the region in one colour. CHiP (code read, third-party note) compares a black picture."""

    colour: Colour = "black"

    def __post_init__(self) -> None:
        check_colour(self.colour, "Fill")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def filled(picture: Picture) -> Picture:
            return painted(picture, np.ones(picture.shape[:2], dtype=np.bool_), self.colour)

        return within(media, mask, recorded(self, seed), filled)

    @property
    def strength(self) -> float:
        """Always 1: nothing of the region is left."""
        return 1.0


@dataclass(frozen=True)
class PixelMask:
    """Paints a random `share` of the pixels, or of the blocks of `patch` x `patch` pixels.

    OPA-DPO sets 30% of the pixels to the mean and has a variant with blocks of 14 (code read). That the
    mean is the picture's own is inferred. The painted pixels of a smaller share are among those of a larger
    one of the same seed. The blocks lie on a grid from the top left corner; those at the far edges may be
    cut.

    Raises ValueError for a share outside 0..1 or a patch below 1.
    """

    share: float = 0.3
    patch: int = 1
    colour: Colour = "mean"

    def __post_init__(self) -> None:
        check_share(self.share, "PixelMask")
        check_colour(self.colour, "PixelMask")
        if self.patch < 1:
            raise ValueError(f"PixelMask(patch=...): expected at least 1 pixel, got {self.patch}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def masked(picture: Picture) -> Picture:
            height, width = picture.shape[:2]
            rows, columns = -(-height // self.patch), -(-width // self.patch)
            order = np.random.default_rng(seed).permutation(rows * columns)
            blocks = np.zeros(rows * columns, dtype=np.bool_)
            blocks[order[: round(self.share * len(order))]] = True
            grown = blocks.reshape(rows, columns).repeat(self.patch, axis=0).repeat(self.patch, axis=1)
            return painted(picture, grown[:height, :width], self.colour)

        return within(media, mask, recorded(self, seed), masked)

    @property
    def strength(self) -> float:
        """The share that is painted."""
        return self.share


@dataclass(frozen=True)
class GradedMask:
    """Paints a `share` of the region, its core first: of two shares the larger one's pixels hold the other's.

    LPOI (third-party note) ranks pictures by how much of the key object is masked. The order, by distance
    from the region's edge, is inferred. Without a region the whole picture counts as the object.

    Raises ValueError for a share outside 0..1.
    """

    share: float
    colour: Colour = "black"

    def __post_init__(self) -> None:
        check_share(self.share, "GradedMask")
        check_colour(self.colour, "GradedMask")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def masked(picture: Picture) -> Picture:
            region = np.ones(picture.shape[:2], dtype=np.bool_) if mask is None else mask
            return painted(picture, core(region, self.share), self.colour)

        return within(media, mask, recorded(self, seed), masked)

    @property
    def strength(self) -> float:
        """The share of the region that is painted."""
        return self.share


def graded(levels: int, colour: Colour = "black") -> tuple[GradedMask, ...]:
    """`levels` masks of rising strength: shares 1/levels, 2/levels, ..., 1."""
    if levels < 1:
        raise ValueError(f"graded(levels=...): expected at least 1, got {levels}")
    return tuple(GradedMask(level / levels, colour) for level in range(1, levels + 1))


def core(region: Mask, share: float) -> Mask:
    """The `share` of the region's pixels that are farthest from its edge, in reading order where equal."""
    import cv2

    library: Any = cv2
    edged = np.pad(region, 1).astype(np.uint8)
    depth: NDArray[np.float32] = library.distanceTransform(edged, library.DIST_L2, library.DIST_MASK_PRECISE)[
        1:-1, 1:-1
    ]
    places = np.flatnonzero(region)
    order = np.argsort(-np.round(depth.ravel()[places], 3), kind="stable")
    chosen = np.zeros(region.size, dtype=np.bool_)
    chosen[places[order[: round(share * len(places))]]] = True
    return chosen.reshape(region.shape)
