"""Forward diffusion noise on pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.perturbations.base import Mask, Picture, recorded, within
from pipelines.types import Media

Space = Literal["pixels", "normalised"]
STEPS = 1000
#: Mean and deviation per channel that CLIP's image processors use.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@cache
def _signal_shares() -> NDArray[np.float64]:
    """alpha-bar of each step, [STEPS]: the share of the picture's variance that is left."""
    ramp = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, STEPS)))
    betas = ramp * (0.5e-2 - 1e-5) + 1e-5
    return np.cumprod(1.0 - betas, dtype=np.float64)


def coefficients(step: int) -> tuple[float, float]:
    """(signal, noise) at a step of 0..999: x_step = signal * x + noise * eps, with eps standard normal."""
    if not 0 <= step < STEPS:
        raise ValueError(f"diffusion step: expected 0 to {STEPS - 1}, got {step}")
    share = float(_signal_shares()[step])
    return share**0.5, (1.0 - share) ** 0.5


def check_space(space: str, who: str) -> None:
    if space not in ("pixels", "normalised"):
        raise ValueError(f"{who}(space=...): expected 'pixels' or 'normalised', got {space!r}")


def noised(picture: Picture, signal: float, noise: float, space: Space, seed: int) -> Picture:
    """signal * x + noise * eps, x in [0, 1] ("pixels") or CLIP-normalised; clipped and rounded to rgb8."""
    values = picture / 255.0
    eps = np.random.default_rng(seed).standard_normal(values.shape)
    if space == "normalised":
        values = (signal * (values - CLIP_MEAN) / CLIP_STD + noise * eps) * CLIP_STD + CLIP_MEAN
    else:
        values = signal * values + noise * eps
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


@dataclass(frozen=True)
class Diffuse:
    """x_k = sqrt(abar_k) x + sqrt(1 - abar_k) eps, on the sigmoid schedule of 1000 steps.

    The schedule (beta_i = sigmoid(linspace(-6, 6)_i) (0.005 - 0.00001) + 0.00001) is that of the released
    code of VCD, POVID, CHiP and TARS (code read). MFPO (arXiv 2410.15334, third-party note) noises key
    regions and finds k = 500 best; which schedule it uses is inferred.

    Where the noise is added decides how strong a step is. "pixels" noises values in [0, 1] (POVID);
    "normalised" noises CLIP-normalised values (CHiP), where a picture has a deviation of about 1, so that the
    same step is some four times milder and the signal fades to CLIP's mean colour instead of black.

    The result is rgb8 again, so that every engine sees the same array: values outside [0, 1] are clipped,
    which the original float tensors were not. Clipping saturates the noise in dark and bright areas (on black
    half of it is lost) and shifts their mean towards grey.
    """

    step: int = 500
    space: Space = "pixels"

    def __post_init__(self) -> None:
        coefficients(self.step)
        check_space(self.space, "Diffuse")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        op = recorded(self, seed)
        signal, noise = coefficients(self.step)
        return within(media, mask, op, lambda picture: noised(picture, signal, noise, self.space, seed))

    @property
    def strength(self) -> float:
        """The step; a normalised step is milder than the same step on pixels."""
        return float(self.step)
