"""Random regions, maps, and selectors made from others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.base import DamageRequest, Regions, damage
from pipelines.perturbations.fill import Fill
from pipelines.perturbations.selectors import Attention, Complement, GoldMap, HeatMap, RandomFraction, Union
from pipelines.types import Media

RAMP = np.arange(12.0).reshape(3, 4)  # as large as `small`


@pytest.fixture
def small() -> Media:
    return Media(kind="image", space="rgb8", payload=np.zeros((3, 4, 3), dtype=np.uint8))


def left(media: Media, answer: str, gold: Any, seed: int) -> Regions | None:
    mask = np.zeros(media.payload.shape[:2], dtype=np.bool_)
    mask[:, 0] = True
    return Regions(mask=mask, facts={"side": "left"})


def top(media: Media, answer: str, gold: Any, seed: int) -> Regions | None:
    mask = np.zeros(media.payload.shape[:2], dtype=np.bool_)
    mask[0] = True
    return Regions(mask=mask, facts={"side": "top"})


def nowhere(media: Media, answer: str, gold: Any, seed: int) -> Regions | None:
    return None


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
    patch=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_random_region_has_exactly_its_share(
    height: int, width: int, share: float, patch: int | None, seed: int
) -> None:
    media = Media(kind="image", space="rgb8", payload=np.zeros((height, width, 3), dtype=np.uint8))
    found = RandomFraction(share, patch)(media, "", {}, seed)
    assert found.mask.shape == (height, width)
    assert found.mask.sum() == max(round(share * height * width), 1)
    assert np.array_equal(found.mask, RandomFraction(share, patch)(media, "", {}, seed).mask)


def test_random_regions_differ_by_seed_and_cover_everything_in_time(picture: Media) -> None:
    for patch in (None, 8):
        masks = [RandomFraction(0.2, patch)(picture, "", {}, seed).mask for seed in range(100)]
        assert len({mask.tobytes() for mask in masks}) == 100
        assert np.logical_or.reduce(masks).all()


def test_random_patches_are_whole(picture: Media) -> None:
    """40 x 56 has 5 x 7 blocks of 8; a share of 0.2 is 7 of these 35, exactly."""
    mask = RandomFraction(0.2, 8)(picture, "", {}, 5).mask.reshape(5, 8, 7, 8)
    assert np.array_equal(mask.all(axis=(1, 3)), mask.any(axis=(1, 3)))
    assert mask.all(axis=(1, 3)).sum() == 7


def test_heat_map_golden(small: Media) -> None:
    """0..11: mean 5.5, deviation sqrt(143 / 12) = 3.452. Above 2.048 are 3..11, above 8.952 are 9..11."""
    gold = {"heat_map": RAMP.tolist()}
    mild, strict = HeatMap()(small, "", gold, 0), HeatMap(deviations=1.0)(small, "", gold, 0)
    assert mild is not None and strict is not None
    assert RAMP[mild.mask].tolist() == list(range(3, 12))
    assert RAMP[strict.mask].tolist() == [9, 10, 11]
    assert mild.facts == {"threshold": pytest.approx(2.048, abs=0.001)}
    assert HeatMap()(small, "", {}, 0) is None


def test_maps_are_stretched_to_the_picture(picture: Media) -> None:
    """A map of 1 x 2, cold and hot: the right half is hot, the middle is interpolated."""
    found = HeatMap(lambda media, answer, gold: np.array([[0.0, 1.0]]), 0.0)(picture, "", {}, 0)
    assert found is not None
    assert found.mask[:, 28:].all()
    assert not found.mask[:, :28].any()


def test_rows_that_come_back_from_a_columnar_store(small: Media) -> None:
    rows = np.empty(3, dtype=object)
    rows[:] = [row for row in RAMP]
    heat = GoldMap("heat")(small, "", {"heat": rows})
    assert heat is not None and np.array_equal(heat, RAMP)


def test_attention_golden(small: Media) -> None:
    """A quarter of 12 pixels: the 3 most attended; of equal ones the first in reading order."""
    found = Attention(lambda media, answer: RAMP, 0.25)(small, "", {}, 0)
    assert RAMP[found.mask].tolist() == [9, 10, 11]
    even = Attention(lambda media, answer: np.ones((3, 4)), 0.25)(small, "", {}, 0)
    assert np.flatnonzero(even.mask).tolist() == [0, 1, 2]


def test_attention_is_asked_about_the_answer(small: Media) -> None:
    asked: list[str] = []

    def attend(media: Media, answer: str) -> np.ndarray:
        asked.append(answer)
        return RAMP

    Attention(attend)(small, "a dog", {}, 0)
    assert asked == ["a dog"]


def test_union_and_complement(small: Media) -> None:
    both = Union((left, nowhere, top))(small, "", {}, 0)
    assert both is not None
    assert both.mask.tolist() == [[True] * 4, [True, False, False, False], [True, False, False, False]]
    assert both.facts == {"union": [{"side": "left"}, {"side": "top"}]}
    rest = Complement(left)(small, "", {}, 0)
    assert rest is not None
    assert rest.mask.tolist() == [[False, True, True, True]] * 3
    assert Union((nowhere, nowhere))(small, "", {}, 0) is None
    assert Complement(nowhere)(small, "", {}, 0) is None


def test_the_record_of_a_damage_keeps_both_shares(picture: Media) -> None:
    asked = DamageRequest(perturbation=Fill(), selector=Union((RandomFraction(0.1), left)), seed=3)
    damaged = damage(picture, asked)
    assert damaged.op is not None and damaged.op.params["fallback"] is False
    assert damaged.op.params["union"] == [{"region_share": 0.1}, {"side": "left"}]
    json.dumps(damaged.op.to_json())


@pytest.mark.parametrize("bad", [np.zeros(5), np.array([[np.nan]]), np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_bad_maps_are_errors(bad: np.ndarray, small: Media) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        HeatMap(lambda media, answer, gold: bad)(small, "", {}, 0)
    with pytest.raises(ValueError, match="finite numbers"):
        Attention(lambda media, answer: bad)(small, "", {}, 0)


def test_bad_parameters_are_errors() -> None:
    for make in (lambda: RandomFraction(0.0), lambda: Attention(lambda media, answer: RAMP, 1.5)):
        with pytest.raises(ValueError, match="more than 0, at most 1"):
            make()
    with pytest.raises(ValueError, match="at least 1 pixel"):
        RandomFraction(0.2, 0)
