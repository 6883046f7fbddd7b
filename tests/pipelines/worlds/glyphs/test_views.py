"""Pictures of texts, how well texts fit pictures, and a bank."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.base import DamageRequest, damage
from pipelines.perturbations.fill import Fill
from pipelines.perturbations.replace import Generate, Retrieve
from pipelines.perturbations.similarity import corruption_weights
from pipelines.types import Media
from pipelines.worlds.glyphs.captions import Mention, mentions_of, write_caption
from pipelines.worlds.glyphs.scenes import Scene, render_image
from pipelines.worlds.glyphs.views import GlyphsBank, render_text, scene_of_text, similarity

SEVEN, ONE = "a red seven top left", "a blue one bottom right"  # the objects of `two_objects`
mentions = st.builds(Mention, st.integers(0, 9), st.integers(0, 2), st.integers(0, 3))


def shown(scene: Scene) -> tuple[Media, dict[str, Any]]:
    picture = Media(kind="image", space="rgb8", payload=render_image(scene))
    return picture, {"kind": "caption", "scene": scene.to_json()}


def test_the_true_caption_draws_the_true_picture(two_objects: Scene) -> None:
    picture, gold = shown(two_objects)
    for seed in range(3):
        assert np.array_equal(render_text(f"{ONE} and {SEVEN} .", picture, gold, seed), picture.payload)


@given(said=st.lists(mentions, max_size=5), seed=st.integers(0, 999))
def test_the_drawn_scene_is_what_the_text_says(said: list[Mention], seed: int, two_objects: Scene) -> None:
    """The first mention of each cell, in reading order; the same seed draws the same."""
    _, gold = shown(two_objects)
    scene = scene_of_text(write_caption(said), gold, seed)
    first = {mention.cell: mention for mention in reversed(said)}
    assert mentions_of(scene) == tuple(first[cell] for cell in sorted(first))
    assert scene == scene_of_text(write_caption(said), gold, seed)


def test_only_what_differs_is_drawn_anew(two_objects: Scene) -> None:
    """A wrong colour top left: the other three quarters keep their pixels. A new object is green alone."""
    picture, gold = shown(two_objects)
    asked = DamageRequest(
        perturbation=Generate(render_text), answer=f"a green seven top left and {ONE} .", gold=gold, seed=4
    )
    drawn = damage(picture, asked).payload
    assert np.array_equal(drawn[32:], picture.payload[32:])
    assert np.array_equal(drawn[:, 32:], picture.payload[:, 32:])
    assert drawn[:32, :32, 1].any()
    assert not drawn[:32, :32, [0, 2]].any()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{SEVEN} and {ONE} .", 1.0),
        (f"{SEVEN} .", 1.0),
        (f"{SEVEN} and a red eight top right .", 0.5),
        ("a green two top right .", 0.0),
        ("seven", 1.0),
        ("Blue", 1.0),
        ("green", 0.0),
        ("and", 0.0),
        ("red dog", 0.5),
        ("", 0.0),
    ],
)
def test_similarity_golden(text: str, value: float, two_objects: Scene) -> None:
    picture, gold = shown(two_objects)
    assert similarity(picture, [text], gold) == (pytest.approx(value),)


def test_similarity_falls_with_the_object_alone(two_objects: Scene) -> None:
    """With the seven painted black, what is said of it is 0; half of a caption of both."""
    picture, gold = shown(two_objects)
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[:32, :32] = True
    damaged = Fill()(picture, mask, 0)
    texts = (f"{SEVEN} .", f"{ONE} .", f"{SEVEN} and {ONE} .", "seven")
    assert similarity(damaged, texts, gold) == pytest.approx((0.0, 1.0, 0.5, 0.0))
    assert corruption_weights(damaged, ["seven", "one", "a"], gold, similarity) == pytest.approx((1, 0, 1))


def test_the_bank_travels_and_finds_others() -> None:
    bank = GlyphsBank(12, seed=3)
    pictures = pickle.loads(pickle.dumps(bank))()
    assert [media.digest for media in pictures] == [media.digest for media in bank()]
    assert len({media.digest for media in pictures}) == 12
    found = Retrieve(bank)(pictures[0], None, 0)
    assert found.digest in {media.digest for media in pictures[1:]}
