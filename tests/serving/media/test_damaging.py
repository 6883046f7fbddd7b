"""Pictures damaged on purpose, in a decoder's process."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.fill import PixelMask
from pipelines.perturbations.noise import Gaussian
from pipelines.types import Media
from serving.limits import Limits
from serving.media import BadMedia, MediaPool, damage

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)


def url(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def damaged(pool: MediaPool, count: int, name: str, amount: float | None, **limits: Any) -> list[Any]:
    asked = damage([url(PIXELS)] * count, name, amount, 5, limits=Limits(**limits), pool=pool)
    found = asyncio.run(asked)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))) for one in found]


@pytest.mark.parametrize(
    ("name", "amount", "own"),
    [
        ("diffuse", None, Diffuse(500, space="normalised")),
        ("diffuse", 900, Diffuse(900, space="normalised")),
        ("gaussian", 0.4, Gaussian(0.4)),
        ("pixel_mask", 0.5, PixelMask(0.5)),
    ],
)
def test_it_is_the_librarys_perturbation_under_seeds_that_follow_each_other(
    pool: MediaPool, name: str, amount: float | None, own: Any
) -> None:
    media = Media(kind="image", space="rgb8", payload=PIXELS)
    first, second = damaged(pool, 2, name, amount)
    np.testing.assert_array_equal(first, own(media, None, 5).payload)
    np.testing.assert_array_equal(second, own(media, None, 6).payload)
    assert not np.array_equal(first, PIXELS)


@pytest.mark.parametrize("name", ["gaussian", "pixel_mask"])
def test_an_amount_of_nothing_leaves_every_pixel(pool: MediaPool, name: str) -> None:
    np.testing.assert_array_equal(damaged(pool, 1, name, 0.0)[0], PIXELS)


def test_what_becomes_too_large_is_refused_in_words(pool: MediaPool) -> None:
    large = [url(np.full((700, 700, 3), 128, np.uint8))]
    with pytest.raises(BadMedia, match=r"image 1, damaged: .* are left to this request"):
        asyncio.run(damage(large, "gaussian", 0.3, 0, limits=Limits(clean_mib=1), pool=pool))
