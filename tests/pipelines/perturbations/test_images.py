"""Every kind of damage to pictures: what holds for all of them, then one golden for each."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipelines.perturbations.base import AboutAnswer, DamageRequest, Perturbation, damage
from pipelines.perturbations.blur import Blur, Downscale
from pipelines.perturbations.colour import ColourJitter, MocoAugment, jittered
from pipelines.perturbations.crop import Crop
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.fill import Fill, GradedMask, PixelMask, core, graded
from pipelines.perturbations.geometry import PatchShuffle, Rotate
from pipelines.perturbations.inpaint import Inpaint
from pipelines.perturbations.noise import Gaussian, NearBlack
from pipelines.perturbations.replace import (
    FolderBank,
    Generate,
    MediaBank,
    Retrieve,
    Swap,
    colour_layout,
    companions,
)
from pipelines.types import Media


def image(payload: Any) -> Media:
    return Media(kind="image", space="rgb8", payload=np.asarray(payload, dtype=np.uint8))


def grey(values: Any) -> Media:
    """A picture from one number per pixel."""
    return image(np.repeat(np.asarray(values)[..., None], 3, axis=2))


def striped(text: str, media: Media, gold: Mapping[str, Any], seed: int) -> np.ndarray:
    return np.full((5, 7, 3), len(text) + len(gold) + seed % 2, dtype=np.uint8)


BANK = MediaBank(tuple(grey(np.full((9, 6), value)) for value in (0, 60, 120, 255)))
PLAIN: tuple[Perturbation, ...] = (  # blind to the mask: inside it they do what they do to the whole picture
    Diffuse(500),
    Diffuse(700, "normalised"),
    Crop(),
    Crop(0.5, 1.0),
    Gaussian(0.2),
    Gaussian(1.0, "normalised"),
    NearBlack(),
    Fill("mean"),
    PixelMask(0.3),
    PixelMask(0.5, patch=3, colour="grey"),
    Blur(1.5),
    Downscale(3.0),
    Rotate(90.0),
    Rotate(17.5),
    PatchShuffle(3),
    ColourJitter(0.6),
    MocoAugment(),
    Swap(BANK),
    Retrieve(BANK, top=2),
    Generate(striped, "a dog"),
)
SHAPED: tuple[Perturbation, ...] = (Inpaint(), Inpaint(2.0, "navier_stokes"), GradedMask(0.4))
NOTHING: tuple[Perturbation, ...] = (
    Gaussian(0.0),
    Gaussian(0.0, "normalised"),
    PixelMask(0.0),
    GradedMask(0.0),
    Blur(0.0),
    Downscale(1.0),
    Rotate(0.0),
    PatchShuffle(1),
    ColourJitter(0.0),
    Crop(1.0, 1.0),
)


@given(
    payload=hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    seed=st.integers(0, 2**31 - 1),
    data=st.data(),
)
def test_mask_is_exact_and_the_seed_decides(payload: np.ndarray, seed: int, data: st.DataObject) -> None:
    """Outside the mask no byte changes; the same seed gives the same bytes and record, which is JSON."""
    media = image(payload)
    mask = data.draw(hnp.arrays(np.bool_, payload.shape[:2]))
    for perturbation in (*PLAIN, *SHAPED):
        whole, masked = perturbation(media, None, seed), perturbation(media, mask, seed)
        assert np.array_equal(masked.payload[~mask], payload[~mask])
        if perturbation in PLAIN:
            assert np.array_equal(masked.payload[mask], whole.payload[mask])
        again = perturbation(image(payload.copy()), mask, seed)
        assert (again.digest, again.op) == (masked.digest, masked.op)
        assert masked.parent == media.digest
        assert masked.op is not None and masked.op.seed == seed
        assert masked.op.params["strength"] == perturbation.strength
        assert masked.op.params["space"] in ("pixels", "normalised")
        json.dumps(masked.op.to_json())


@given(
    payload=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    seed=st.integers(0, 2**31 - 1),
)
def test_no_strength_no_damage(payload: np.ndarray, seed: int) -> None:
    for perturbation in NOTHING:
        assert np.array_equal(perturbation(image(payload), None, seed).payload, payload)


@pytest.mark.parametrize(
    "series",
    [
        [Diffuse(step) for step in (0, 300, 600, 999)],
        [Gaussian(std) for std in (0.0, 0.1, 0.3, 1.0)],
        [PixelMask(share) for share in (0.0, 0.2, 0.5, 1.0)],
        list(graded(4)),
        [Blur(sigma) for sigma in (0.0, 0.5, 1.0, 3.0)],
        [Downscale(factor) for factor in (1.0, 2.0, 4.0, 8.0)],
        [ColourJitter(amount) for amount in (0.0, 0.1, 0.3, 0.9)],
        [Crop(1.0, 1.0), Crop(0.8, 0.8), Crop(0.01, 0.1)],
    ],
    ids=lambda series: type(series[0]).__name__,
)
def test_more_strength_more_damage(series: list[Perturbation], picture: Media) -> None:
    """The mean distance to the clean picture, over 8 seeds, grows with `strength`."""

    def distance(perturbation: Perturbation) -> float:
        damaged = [perturbation(picture, None, seed).payload.astype(float) for seed in range(8)]
        return float(np.mean([np.abs(payload - picture.payload).mean() for payload in damaged]))

    strengths = [perturbation.strength for perturbation in series]
    assert strengths == sorted(set(strengths))
    distances = [distance(perturbation) for perturbation in series]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)


def test_they_travel(picture: Media) -> None:
    for perturbation in (*PLAIN, *SHAPED):
        there = pickle.loads(pickle.dumps(perturbation))
        assert there(picture, None, 3).digest == perturbation(picture, None, 3).digest


def test_wrong_media_and_masks_are_refused(picture: Media) -> None:
    sound = Media(kind="audio", space="pcm16", payload=np.zeros(100, dtype=np.int16))
    for perturbation in (*PLAIN, *SHAPED):
        with pytest.raises(ValueError, match=r"reads images .* got audio in space 'pcm16'"):
            perturbation(sound, None, 0)
        with pytest.raises(ValueError, match=r"expected a mask bool \(40, 56\), got bool \(56, 40\)"):
            perturbation(picture, np.ones((56, 40), dtype=np.bool_), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(-0.1), "got -0.1"),
        (lambda: Gaussian(float("nan")), "got nan"),
        (lambda: Gaussian(0.1, "latent"), "'pixels' or 'normalised', got 'latent'"),
        (lambda: NearBlack(-1), "got -1"),
        (lambda: Fill("gray"), "black, grey, white, mean, clip_mean, got 'gray'"),
        (lambda: PixelMask(1.1), "0 to 1, got 1.1"),
        (lambda: PixelMask(patch=0), "at least 1 pixel, got 0"),
        (lambda: GradedMask(-0.5), "0 to 1, got -0.5"),
        (lambda: graded(0), "at least 1, got 0"),
        (lambda: Inpaint(0), "more than 0 pixels, got 0"),
        (lambda: Inpaint(method="lama"), "got 'lama'"),
        (lambda: Blur(float("inf")), "got inf"),
        (lambda: Downscale(0.5), "at least 1, got 0.5"),
        (lambda: Rotate(181), "0 to 180, got 181"),
        (lambda: PatchShuffle(0), "got 0"),
        (lambda: ColourJitter(1.5), "got 1.5"),
        (lambda: Retrieve(BANK, top=0), "got 0"),
    ],
)
def test_wrong_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gaussian_golden() -> None:
    """On mid grey with std 0.1 nothing is clipped (5 deviations): mean 128/255, deviation 0.1. In normalised
    space the deviation of each channel is 0.1 times CLIP's. The standard error of 40,000 values is 0.0005.
    """
    media = grey(np.full((200, 200), 128))
    values = Gaussian(0.1)(media, None, 3).payload / 255
    assert values.mean() == pytest.approx(128 / 255, abs=0.001)
    assert values.std() == pytest.approx(0.1, abs=0.001)
    values = Gaussian(0.1, "normalised")(media, None, 3).payload / 255
    assert values.std(axis=(0, 1)) == pytest.approx([0.02686, 0.02613, 0.02758], abs=0.0005)


def test_near_black_golden() -> None:
    """max(0, N(0, 10)) has mean 10 / sqrt(2 pi) = 3.989; rounding leaves it (error below 0.01). What
    rounds to 0 lies below 0.5: a share of Phi(0.05) = 0.5199.
    """
    values = NearBlack()(grey(np.full((200, 200), 255)), None, 0).payload
    assert values.mean() == pytest.approx(3.989, abs=0.1)
    assert (values == 0).mean() == pytest.approx(0.5199, abs=0.01)
    assert values.max() < 70


@pytest.mark.parametrize(
    ("colour", "rgb"),
    [
        ("black", [0, 0, 0]),
        ("grey", [128, 128, 128]),
        ("white", [255, 255, 255]),
        ("mean", [5, 10, 16]),  # halves of (10, 20, 31); 15.5 rounds to even
        ("clip_mean", [123, 117, 104]),  # 0.48145466, 0.4578275, 0.40821073 times 255
    ],
)
def test_fill_golden(colour: Any, rgb: list[int]) -> None:
    media = image([[[0, 0, 0], [10, 20, 31]]])
    filled = Fill(colour)(media, np.array([[True, False]]), 0)
    assert filled.payload.tolist() == [[rgb, [10, 20, 31]]]


def test_pixel_mask_paints_exact_nested_shares() -> None:
    """30 of 100 pixels; 5 x 5 has 9 blocks of side 2, of which round(0.3 * 9) = 3 are painted."""
    media = grey(np.arange(100).reshape(10, 10))
    small, large = (
        PixelMask(share, colour="white")(media, None, 4).payload[..., 0] == 255 for share in (0.3, 0.6)
    )
    assert (small.sum(), large.sum()) == (30, 60)
    assert not (small & ~large).any()
    blocks = PixelMask(0.3, patch=2, colour="white")(grey(np.zeros((5, 5))), None, 1).payload[..., 0] == 255
    padded = np.pad(blocks, ((0, 1), (0, 1)), mode="edge").reshape(3, 2, 3, 2)
    assert (padded.all(axis=(1, 3)) == padded.any(axis=(1, 3))).all()
    assert padded.all(axis=(1, 3)).sum() == 3


def test_graded_masks_grow_from_the_core() -> None:
    """A 3 x 3 region: its middle is 2 from the edge, all others 1, so that these follow in reading order."""
    region = np.zeros((5, 6), dtype=np.bool_)
    region[1:4, 2:5] = True
    assert np.argwhere(core(region, 1 / 9)).tolist() == [[2, 3]]
    assert np.argwhere(core(region, 3 / 9)).tolist() == [[1, 2], [1, 3], [2, 3]]
    media = grey(np.full((5, 6), 200))
    dark = [step(media, region, 0).payload[..., 0] == 0 for step in graded(3)]
    assert [int(mask.sum()) for mask in dark] == [3, 6, 9]
    assert all(not (a & ~b).any() for a, b in pairwise(dark))
    assert np.array_equal(dark[2], region)
    assert [step.strength for step in graded(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("method", ["telea", "navier_stokes"])
def test_inpaint_removes_an_object_from_a_plain_ground(method: Any) -> None:
    """The region is filled from around it, so with one colour; where it is everything, with the mean."""
    payload = np.full((20, 20, 3), (10, 90, 170), dtype=np.uint8)
    payload[6:12, 6:12] = 255
    region = np.zeros((20, 20), dtype=np.bool_)
    region[6:12, 6:12] = True
    removed = Inpaint(method=method)(image(payload), region, 0).payload
    assert np.abs(removed.astype(int) - (10, 90, 170)).max() <= 3
    media = grey([[0, 100], [100, 200]])
    assert set(Inpaint(method=method)(media, None, 0).payload.ravel().tolist()) == {100}


def test_blur_golden() -> None:
    """One white pixel, sigma 1: the kernel has 7 taps exp(-k^2/2), whose sum is 2.50596, so that the
    middle keeps 255 / 2.50596^2 = 40.6 and its neighbour 255 * 0.60653 / 2.50596^2 = 24.6.
    """
    values = np.zeros((15, 15))
    values[7, 7] = 255
    blurred = Blur(1.0)(grey(values), None, 0).payload[..., 0]
    assert blurred[7, 7] == pytest.approx(40.6, abs=1)
    assert blurred[7, 8] == blurred[6, 7] == pytest.approx(24.6, abs=1)


def test_downscale_golden() -> None:
    """Two by two pixels become their mean; a picture is never smaller than one pixel."""
    assert set(Downscale(2.0)(grey([[0, 100], [100, 200]]), None, 0).payload.ravel().tolist()) == {100}
    assert set(Downscale(99.0)(grey([[0, 100], [100, 200]]), None, 0).payload.ravel().tolist()) == {100}


def test_rotate_golden(picture: Media) -> None:
    """A half turn reverses both axes; a quarter turn of a square is numpy's, to the side on record."""
    assert np.array_equal(Rotate(180.0)(picture, None, 0).payload, picture.payload[::-1, ::-1])
    square = image(picture.payload[:40, :40])
    sides: set[float] = set()
    for seed in range(10):
        turned = Rotate(90.0)(square, None, seed)
        assert turned.op is not None
        angle = turned.op.params["angle"]
        assert np.array_equal(turned.payload, np.rot90(square.payload, 1 if angle > 0 else -1))
        sides.add(angle)
    assert sides == {90.0, -90.0}


def test_patch_shuffle_moves_whole_patches() -> None:
    """5 x 4 in 2 x 2 patches of 2 x 2: the four are permuted, the last row stays."""
    media = grey(np.arange(20).reshape(5, 4))
    patches = {(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)}
    orders: set[tuple[Any, ...]] = set()
    for seed in range(20):
        values = PatchShuffle(2)(media, None, seed).payload[..., 0]
        assert values[4].tolist() == [16, 17, 18, 19]
        order = tuple(tuple(values[y : y + 2, x : x + 2].ravel().tolist()) for y in (0, 2) for x in (0, 2))
        assert set(order) == patches
        orders.add(order)
    assert len(orders) > 5


def test_jitter_golden() -> None:
    """Half the brightness halves values; a third of the circle of hue makes red green; no saturation is luma:
    0.299 * 200 = 59.8.
    """
    red = np.full((4, 4, 3), (200, 0, 0), dtype=np.uint8)
    same = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    assert jittered(red, same | {"brightness": 0.5})[0, 0].tolist() == [100, 0, 0]
    assert jittered(red, same | {"hue": 1 / 3})[0, 0] == pytest.approx([0, 200, 0], abs=3)
    assert jittered(red, same | {"saturation": 0.0})[0, 0] == pytest.approx([59.8] * 3, abs=1)
    assert jittered(red, same | {"contrast": 0.0})[0, 0] == pytest.approx([59.8] * 3, abs=1)


def test_moco_draws_each_of_its_parts(picture: Media) -> None:
    """Of 200 seeds jitter is drawn with 0.8, grey 0.2, blur 0.5, mirror 0.5; 5 errors are below 0.18."""
    drawn = []
    for seed in range(200):
        op = MocoAugment()(image(picture.payload[:8, :8]), None, seed).op
        assert op is not None
        drawn.append(op.params)
    shares = [
        np.mean([bool(params[name]) for params in drawn]) for name in ("jitter", "grey", "sigma", "mirrored")
    ]
    assert shares == pytest.approx([0.8, 0.2, 0.5, 0.5], abs=0.18)


def test_swap_takes_any_other_picture() -> None:
    media = BANK.pictures[1]
    seen = {Swap(BANK)(media, None, seed).op.params["source"] for seed in range(60)}  # type: ignore[union-attr]
    assert seen == {other.digest for other in BANK.pictures} - {media.digest}
    with pytest.raises(ValueError, match="no picture but the one to be replaced"):
        Swap(MediaBank((media,)))(media, None, 0)


def test_retrieve_takes_the_nearest_other_picture() -> None:
    """Red on the left: dimmer red on the left is nearer than red on the right or blue; never itself."""
    payloads = {name: np.zeros((16, 16, 3), dtype=np.uint8) for name in ("left", "dim", "right", "blue")}
    payloads["left"][:, :8, 0], payloads["dim"][:, :8, 0] = 250, 200
    payloads["right"][:, 8:, 0], payloads["blue"][:, 8:, 2] = 250, 250
    bank = MediaBank(tuple(map(image, payloads.values())))
    media = image(payloads["left"])
    found = Retrieve(bank)(media, None, 0)
    assert np.array_equal(found.payload, payloads["dim"])
    assert found.op is not None and found.op.params["similarity"] == pytest.approx(1.0, abs=0.01)
    two = {Retrieve(bank, top=2)(media, None, seed).digest for seed in range(30)}
    assert two == {image(payloads["dim"]).digest, image(payloads["right"]).digest}


def test_colour_layout_golden() -> None:
    """All black: no thumbnail direction, and a histogram in its first bin alone."""
    vector = colour_layout(grey(np.zeros((3, 9))))
    assert vector.shape == (256,)
    assert np.flatnonzero(vector).tolist() == [192]
    assert vector[192] == 1.0


def test_another_picture_takes_the_size_of_the_first(picture: Media) -> None:
    swapped = Swap(BANK)(picture, None, 0)
    assert swapped.payload.shape == picture.payload.shape
    assert len(np.unique(swapped.payload)) == 1


def test_companions_are_different_others() -> None:
    media = BANK.pictures[2]
    drawn = [companions(BANK, media, 2, seed) for seed in range(30)]
    assert all(len({media.digest, *(other.digest for other in others)}) == 3 for others in drawn)
    assert len({others[0].digest for others in drawn}) == 3
    with pytest.raises(ValueError, match="holds 3 other pictures, expected at least 4"):
        companions(BANK, media, 4, 0)


def test_folder_bank(tmp_path: Path) -> None:
    for name, value in (("b.png", 9), ("a.PNG", 7)):
        Image.fromarray(np.full((2, 3, 3), value, dtype=np.uint8)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [media.payload[0, 0, 0] for media in FolderBank(str(tmp_path))()] == [7, 9]
    with pytest.raises(ValueError, match="found none in"):
        FolderBank(str(tmp_path / "nowhere"))()
    (tmp_path / "c.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"c\.jpg' cannot be read"):
        FolderBank(str(tmp_path))()


def test_generate_draws_what_the_answer_says(picture: Media) -> None:
    """ "a cat" has 5 letters, the row 1 column, the seed is even: grey level 6, at the picture's size."""
    assert isinstance(Generate(striped), AboutAnswer)
    asked = DamageRequest(perturbation=Generate(striped), answer="a cat", gold={"scene": 1}, seed=2)
    drawn = damage(picture, asked)
    assert np.array_equal(drawn.payload, np.full_like(picture.payload, 6))
    assert drawn.op is not None and drawn.op.params["text"] == "a cat"
    with pytest.raises(ValueError, match="got no text"):
        damage(picture, DamageRequest(perturbation=Generate(striped), seed=2))
