"""Pictures damaged on purpose, by the method library's perturbations, for contrastive decoding."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image

from pipelines.perturbations.base import Perturbation
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.fill import PixelMask
from pipelines.perturbations.noise import Gaussian
from pipelines.types import Media

#: What requests call it -> the perturbation as a function of the number that says how strong it is.
#: VCD noises what the image processor gives to the model, so its steps are those of normalised values (from
#: memory).
DAMAGES: Final[Mapping[str, Callable[..., Perturbation]]] = {
    "diffuse": lambda step=500: Diffuse(_whole(step), space="normalised"),
    "gaussian": Gaussian,
    "pixel_mask": partial(PixelMask, colour="mean"),
}


def perturbation(name: str, amount: float | None) -> Perturbation:
    """The perturbation of a name; None: as strong as it is by default. Raises ValueError for the amount."""
    return DAMAGES[name]() if amount is None else DAMAGES[name](amount)


def damaged(data: bytes, job: Mapping[str, Any]) -> tuple[str, bytes]:
    """Media type and bytes of a cleaned picture, damaged. `job`: name, amount, seed."""
    picture = Media(kind="image", space="rgb8", payload=np.asarray(Image.open(io.BytesIO(data))))
    result = perturbation(job["name"], job["amount"])(picture, None, job["seed"])
    out = io.BytesIO()
    Image.fromarray(result.payload).save(out, "PNG", compress_level=1)
    return "image/png", out.getvalue()


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(f"expected a whole number of steps, got {number}")
    return int(number)
