"""Additive noise, and MMedPO's near-black noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.perturbations.diffuse import Space, check_space, noised
from pipelines.types import Media


@dataclass(frozen=True)
class Gaussian:
    """x + std * eps with eps standard normal, clipped to rgb8.

    `std` is a share of the range of values ("pixels", x in [0, 1]) or a number of CLIP's deviations
    ("normalised"), some four times milder. OmniDPO (third-party note) noises its raw signals so; its
    deviation is not reported, so the default is inferred.

    Raises ValueError for a deviation that is negative or not finite.
    """

    std: float = 0.3
    space: Space = "pixels"

    def __post_init__(self) -> None:
        check_space(self.space, "Gaussian")
        if not 0 <= self.std < np.inf:
            raise ValueError(f"Gaussian(std=...): expected a finite number of at least 0, got {self.std}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        op = recorded(self, seed)
        return within(media, mask, op, lambda picture: noised(picture, 1.0, self.std, self.space, seed))

    @property
    def strength(self) -> float:
        """The deviation; one of normalised space is milder than the same one of pixels."""
        return self.std


@dataclass(frozen=True)
class NearBlack:
    """Replaces values by N(0, std) in grey levels (0 to 255), clipped: nearly black, since half of it is 0.

    MMedPO's released code paints the lesion's heat-map region so, with std 10 (code read), although the paper
    speaks of noise. Raises ValueError for a deviation that is negative or not finite.
    """

    std: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.std < np.inf:
            raise ValueError(f"NearBlack(std=...): expected a finite number of at least 0, got {self.std}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        def painted(picture: Picture) -> Picture:
            values = self.std * np.random.default_rng(seed).standard_normal(picture.shape)
            return np.rint(np.clip(values, 0, 255)).astype(np.uint8)

        return within(media, mask, recorded(self, seed), painted)

    @property
    def strength(self) -> float:
        """Always 1: nothing of the picture is left."""
        return 1.0
