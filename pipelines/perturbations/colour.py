"""Colours changed, and the augmentation of contrastive learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.perturbations.blur import blurred
from pipelines.perturbations.crop import Crop, enlarged
from pipelines.types import Media


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation times a factor of 1 - amount .. 1 + amount, then hue shifted.

    The hue moves by up to amount / 4 of the colour circle to either side, the proportion that MoCo v2 uses
    (arXiv 2003.04297, from memory). Raises ValueError for an amount outside 0..1.
    """

    amount: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise ValueError(f"ColourJitter(amount=...): expected 0 to 1, got {self.amount}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        drawn = drawn_jitter(self.amount, np.random.default_rng(seed))
        return within(media, mask, recorded(self, seed, **drawn), lambda p: jittered(p, drawn))

    @property
    def strength(self) -> float:
        """The amount."""
        return self.amount


def drawn_jitter(amount: float, rng: np.random.Generator) -> dict[str, float]:
    """Random factors, and `hue` as a share of the colour circle."""
    factors = {
        name: float(rng.uniform(1 - amount, 1 + amount)) for name in ("brightness", "contrast", "saturation")
    }
    return {**factors, "hue": float(rng.uniform(-amount / 4, amount / 4))}


def jittered(picture: Picture, drawn: Mapping[str, float]) -> Picture:
    from PIL import Image, ImageEnhance

    image = ImageEnhance.Brightness(Image.fromarray(picture)).enhance(drawn["brightness"])
    image = ImageEnhance.Contrast(image).enhance(drawn["contrast"])
    image = ImageEnhance.Color(image).enhance(drawn["saturation"])
    shift = round(drawn["hue"] * 256) % 256
    if shift == 0:  # the way to HSV and back would change bytes
        return np.asarray(image)
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(shift)  # wraps around, as hue does
    return np.asarray(Image.fromarray(hsv, mode="HSV").convert("RGB"))


@dataclass(frozen=True)
class MocoAugment:
    """MoCo v2's augmentation (arXiv 2003.04297, from memory), one of mDPO's rejected pictures (ablation).

    A crop of 20% to 100% of the area, colour jitter 0.4 with probability 0.8, grey with 0.2, blur of 0.1 to 2
    pixels with 0.5, mirrored with 0.5.
    """

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        drawn = _draw_moco(seed)

        def augmented(picture: Picture) -> Picture:
            height, width = picture.shape[:2]
            picture = enlarged(picture, Crop(0.2, 1.0).box(width, height, seed))
            picture = jittered(picture, drawn["jitter"]) if drawn["jitter"] else picture
            if drawn["grey"]:
                picture = jittered(picture, _GREY)
            picture = blurred(picture, drawn["sigma"])
            return np.ascontiguousarray(picture[:, ::-1]) if drawn["mirrored"] else picture

        return within(media, mask, recorded(self, seed, **drawn), augmented)

    @property
    def strength(self) -> float:
        """Always 1: its amounts are fixed."""
        return 1.0


_GREY = {"brightness": 1.0, "contrast": 1.0, "saturation": 0.0, "hue": 0.0}


def _draw_moco(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    jitter, grey, blur, mirrored = (bool(rng.random() < chance) for chance in (0.8, 0.2, 0.5, 0.5))
    return {
        "jitter": drawn_jitter(0.4, rng) if jitter else None,
        "grey": grey,
        "sigma": float(rng.uniform(0.1, 2.0)) if blur else 0.0,
        "mirrored": mirrored,
    }
