"""`damage`, Diffuse and Crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.base import DamageRequest, Regions, RegionSelector, damage
from pipelines.perturbations.crop import Crop
from pipelines.perturbations.diffuse import CLIP_MEAN, CLIP_STD, Diffuse, coefficients
from pipelines.types import Media


def image(payload: np.ndarray) -> Media:
    return Media(kind="image", space="rgb8", payload=payload)


@pytest.mark.parametrize(
    ("step", "signal", "noise"), [(300, 0.98, 0.19), (500, 0.86, 0.51), (700, 0.59, 0.81), (999, 0.29, 0.96)]
)
def test_schedule_golden(step: int, signal: float, noise: float) -> None:
    """The rounded coefficients known for this schedule; signal and noise lie on the unit circle."""
    got = coefficients(step)
    assert tuple(round(value, 2) for value in got) == (signal, noise)
    assert got[0] ** 2 + got[1] ** 2 == pytest.approx(1.0, abs=1e-12)


def test_schedule_first_step() -> None:
    """beta_0 = sigmoid(-6) (0.005 - 0.00001) + 0.00001; sigmoid(-6) = 0.00247262; signal^2 = 1 - beta_0."""
    assert coefficients(0)[0] ** 2 == pytest.approx(1 - (0.0024726231566 * 0.00499 + 0.00001), abs=1e-12)


def test_other_seeds_give_other_noise(picture: Media) -> None:
    assert len({Diffuse(500)(picture, None, seed).digest for seed in range(5)}) == 5


def test_noise_has_the_strength_of_the_schedule() -> None:
    """On mid grey at step 100 (noise about 0.06, nothing is clipped) mean and deviation are the schedule's.

    Of 120,000 values the standard error of the mean is below 0.0002; the tolerance is 5 of these.
    """
    media = image(np.full((200, 200, 3), 128, dtype=np.uint8))
    signal, noise = coefficients(100)
    values = Diffuse(100)(media, None, 3).payload / 255.0
    assert values.mean() == pytest.approx(signal * 128 / 255, abs=0.001)
    assert values.std() == pytest.approx(noise, abs=0.001)


def test_normalised_space_is_milder_and_fades_to_the_mean_colour() -> None:
    """CLIP's mean colour is 0 in normalised space; its noise is scaled by CLIP's deviation."""
    media = image(np.broadcast_to(np.rint(CLIP_MEAN * 255), (200, 200, 3)).astype(np.uint8))
    noisy = Diffuse(100, "normalised")(media, None, 3).payload / 255.0
    assert noisy.mean(axis=(0, 1)) == pytest.approx(CLIP_MEAN, abs=0.002)
    assert noisy.std(axis=(0, 1)) == pytest.approx(coefficients(100)[1] * CLIP_STD, abs=0.001)


def test_clipping_of_black() -> None:
    """On black half of the noise is lost: at step 500 it is s = 0.50517 and the mean of clip(s z, 0, 1) is
    s (phi(0) - phi(a)) + 1 - Phi(a) with a = 1 / s, here 0.5052 (0.39894 - 0.05623) + 0.02387 = 0.1970.
    """
    media = image(np.zeros((200, 200, 3), dtype=np.uint8))
    values = Diffuse(500)(media, None, 0).payload / 255.0
    assert (values == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert values.mean() == pytest.approx(0.1970, abs=0.002)


@given(
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    low=st.floats(0.01, 1.0),
    extent=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_crop_keeps_the_share_of_the_area(
    width: int, height: int, low: float, extent: float, seed: int
) -> None:
    """The box lies inside; its area is within [low, high] up to half a pixel on each side."""
    high = low + extent * (1 - low)
    media = image(np.zeros((height, width, 3), dtype=np.uint8))
    cropped = Crop(low, min(high, 1.0))(media, None, seed)
    assert cropped.op is not None
    x0, y0, x1, y1 = cropped.op.params["box"]
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    w, h = x1 - x0, y1 - y0
    assert (w - 0.5) * (h - 0.5) <= high * width * height + 1e-6 or w == 1 or h == 1
    assert (w + 0.5) * (h + 0.5) >= low * width * height - 1e-6
    assert cropped.payload.shape == media.payload.shape


def test_crop_of_everything_is_the_picture(picture: Media) -> None:
    assert Crop(1.0, 1.0)(picture, None, 5).digest == picture.digest


def test_crop_shows_only_what_is_in_the_box() -> None:
    """Left half black, right half white: a crop whose box lies in one half has that colour alone."""
    payload = np.zeros((32, 32, 3), dtype=np.uint8)
    payload[:, 16:] = 255
    seen: set[int] = set()
    for seed in range(40):
        cropped = Crop(0.01, 0.2)(image(payload), None, seed)
        assert cropped.op is not None
        x0, _, x1, _ = cropped.op.params["box"]
        if x1 <= 16 or x0 >= 16:
            assert set(np.unique(cropped.payload).tolist()) == {0 if x1 <= 16 else 255}
            seen.add(int(x1 <= 16))
    assert seen == {0, 1}


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 999, got 1000"):
        Diffuse(1000)
    with pytest.raises(ValueError, match="'pixels' or 'normalised', got 'latent'"):
        Diffuse(500, "latent")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        Crop(0.3, 0.2)


def request(selector: RegionSelector | None) -> DamageRequest:
    return DamageRequest(perturbation=Diffuse(500), selector=selector, answer="a dog", seed=9)


def test_damage_records_regions_or_the_fallback(picture: Media) -> None:
    """Without regions, or with an empty mask, the whole picture is damaged and `fallback` says so."""
    mask = np.zeros((40, 56), dtype=np.bool_)
    mask[:4, :4] = True
    found = Regions(mask=mask, facts={"keywords": ["dog"]})
    damaged = damage(picture, request(lambda media, answer, gold, seed: found))
    assert damaged.op is not None
    settings = {"step": 500, "space": "pixels", "strength": 500.0}
    assert damaged.op.params == {**settings, "keywords": ["dog"], "fallback": False}
    assert np.array_equal(damaged.payload[~mask], picture.payload[~mask])
    for nothing in (None, Regions(mask=np.zeros_like(mask), facts={"keywords": ["dog"]})):
        damaged = damage(picture, request(lambda media, answer, gold, seed, r=nothing: r))
        assert damaged.op is not None
        assert damaged.op.params == {**settings, "fallback": True}
        assert damaged.digest == Diffuse(500)(picture, None, 9).digest
    plain = damage(picture, request(None))
    assert plain.op is not None and "fallback" not in plain.op.params


def test_random_selectors_are_given_the_seed(picture: Media) -> None:
    seeds: list[int] = []
    damage(picture, request(lambda media, answer, gold, seed: seeds.append(seed)))
    assert seeds == [9]
