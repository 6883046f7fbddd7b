"""Corrections leave nothing wrong, injections exactly what was asked for, all in the world's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.constraints import Avoids, EndsWith, Mentions, StartsWith, draw
from pipelines.perturbations.text import SwapWords
from pipelines.worlds.glyphs import Glyphs
from pipelines.worlds.glyphs.captions import Mention, read_caption, write_caption
from pipelines.worlds.glyphs.edits import INSTRUCTIONS, LEXICON, Injected, correct, inject
from pipelines.worlds.glyphs.scenes import Scene, make_scene
from pipelines.worlds.glyphs.verify import verify_caption
from pipelines.worlds.glyphs.vocabulary import COLOURS, DIGITS, WORDS

SEVEN, ONE = "a red seven top left", "a blue one bottom right"  # the objects of `two_objects`
mentions = st.builds(Mention, st.integers(0, 9), st.integers(0, 2), st.integers(0, 3))
clauses = mentions.map(lambda m: write_caption([m]).removesuffix(" .")) | st.sampled_from(
    ["seven", "a dog", ""]
)
indices = st.integers(0, 500)


def row(scene: Scene) -> dict[str, Any]:
    return {"kind": "caption", "scene": scene.to_json()}


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        (f"{SEVEN} and {ONE} .", f"{SEVEN} and {ONE} ."),
        (f"{ONE} .", f"{ONE} ."),  # what is left out stays out
        (f"a red eight top left and {ONE} .", f"{SEVEN} and {ONE} ."),  # seen wrongly: mended in its place
        (f"{SEVEN} and a red eight top right .", f"{SEVEN} ."),  # shares nothing with the one: invented
        (f"{SEVEN} and a green one bottom left .", f"{SEVEN} and {ONE} ."),  # the digit is the one's
        (f"{SEVEN} and {SEVEN} .", f"{SEVEN} ."),
        (f"{SEVEN} and a dog .", f"{SEVEN} ."),
        (f"{SEVEN}", f"{SEVEN} ."),
        ("a green eight top right .", f"{SEVEN} and {ONE} ."),  # nothing is left: the true caption
        ("", f"{SEVEN} and {ONE} ."),
    ],
)
def test_correct_golden(text: str, corrected: str, two_objects: Scene) -> None:
    assert correct(text, row(two_objects)) == corrected


@given(index=indices, said=st.lists(clauses, max_size=6), own=st.booleans(), stop=st.sampled_from([" .", ""]))
def test_a_corrected_caption_has_nothing_wrong(index: int, said: list[str], own: bool, stop: str) -> None:
    scene = make_scene("train", index, 5)
    truth = write_caption(Mention(g.digit, g.colour, g.cell) for g in scene.objects)
    text = " and ".join([*([truth.removesuffix(" .")] if own else []), *said]) + stop
    corrected = correct(text, row(scene))
    before, after = verify_caption(scene, text), verify_caption(scene, corrected)
    assert (after.wrong, after.malformed) == (0, 0)
    assert after.right >= max(before.right, 1)
    assert set(corrected.split()) <= set(WORDS)
    assert correct(corrected, row(scene)) == corrected
    assert (corrected == text) == (before.wrong == before.malformed == 0 and before.mentions > 0)


@given(index=indices, errors=st.integers(1, 5), seed=st.integers(0, 9999))
def test_injected_errors_are_counted_exactly(index: int, errors: int, seed: int) -> None:
    scene = make_scene("train", index, 6)
    truth = correct("", row(scene))
    text, injected = inject(truth, row(scene), seed, errors)
    verdict = verify_caption(scene, text)
    assert (verdict.wrong, verdict.malformed) == (errors, 0)
    assert len(injected) == errors
    assert set(text.split()) <= set(WORDS)
    changed = sum(error.kind != "invented" for error in injected)
    assert verdict.missed == changed
    assert all(error.now in text and (error.kind == "invented") == (error.was == "") for error in injected)
    assert (text, injected) == inject(truth, row(scene), seed, errors)
    assert verify_caption(scene, correct(text, row(scene))).wrong == 0


@given(index=indices, said=st.lists(clauses, max_size=5), errors=st.integers(1, 5), seed=st.integers(0, 99))
def test_errors_come_on_top_of_those_that_are_there(
    index: int, said: list[str], errors: int, seed: int
) -> None:
    scene = make_scene("train", index, 7)
    text = " and ".join(said) + " ."
    worse, _ = inject(text, row(scene), seed, errors)
    assert verify_caption(scene, worse).wrong == verify_caption(scene, text).wrong + errors


@pytest.mark.parametrize("seed", range(8))
def test_of_a_repeated_mention_none_is_changed(seed: int, two_objects: Scene) -> None:
    """One of two equal mentions counts as wrong already; changing it would add nothing."""
    text, (error,) = inject(f"{SEVEN} and {SEVEN} .", row(two_objects), seed)
    assert error.kind == "invented"
    assert verify_caption(two_objects, text).wrong == 2


def test_an_error_is_of_the_kind_it_says(two_objects: Scene) -> None:
    """Each kind differs from what was there in its own property alone; all four are drawn."""
    position = {"object": 0, "attribute": 1, "relation": 2}
    kinds: set[str] = set()
    for seed in range(60):
        _, (error,) = inject(f"{SEVEN} and {ONE} .", row(two_objects), seed)
        kinds.add(error.kind)
        if error.kind != "invented":
            (was,), (now,) = (read_caption(f"{clause} .").mentions for clause in (error.was, error.now))
            assert [i for i in range(3) if was[i] != now[i]] == [position[error.kind]]
    assert kinds == {"object", "attribute", "relation", "invented"}


def test_an_invented_object_is_what_the_prior_suggests(two_objects: Scene) -> None:
    """After the blue one comes a blue two in the first free cell, top right."""
    caption = f"{SEVEN} and {ONE} ."
    edits = [inject(caption, row(two_objects), seed) for seed in range(60)]
    invented = {text for text, (error,) in edits if error.kind == "invented"}
    assert invented == {f"{SEVEN} and {ONE} and a blue two top right ."}


def test_answers_to_questions() -> None:
    gold = next(Glyphs().rows("train", 1, 0, "popular"))
    truth, other = gold["answer"], "no" if gold["answer"] == "yes" else "yes"
    assert correct(truth + " .", gold) == truth + " ."
    assert correct(other, gold) == correct("a dog", gold) == truth
    assert inject(truth, gold, 0) == (other, (Injected("answer", truth, other),))
    with pytest.raises(ValueError, match="can be wrong once, got 2"):
        inject(truth, gold, 0, 2)


@pytest.mark.parametrize("errors", [0, 6])
def test_other_numbers_of_errors_are_refused(errors: int, two_objects: Scene) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 5, got {errors}"):
        inject("", row(two_objects), 0, errors)


@given(seed=st.integers(0, 999))
def test_the_lexicon_swaps_one_property(seed: int) -> None:
    """One swapped phrase changes one mention in one property."""
    edit = SwapWords(LEXICON)
    (was,) = read_caption(f"{SEVEN} .").mentions
    (now,) = read_caption(edit(f"{SEVEN} .", {}, seed)).mentions
    assert sum(a != b for a, b in zip(was, now, strict=True)) == 1


@given(satisfied=st.booleans(), seed=st.integers(0, 999))
def test_instructions_are_said_in_the_world_s_words(satisfied: bool, seed: int) -> None:
    families = (Mentions, Avoids, StartsWith, EndsWith)
    assert {family.__name__ for family in families} == set(INSTRUCTIONS)
    drawn = draw(f"{SEVEN} and {ONE} .", satisfied, seed, families, (*DIGITS, *COLOURS))
    assert drawn is not None
    assert set(drawn.instruction(INSTRUCTIONS).split()) <= set(WORDS)
