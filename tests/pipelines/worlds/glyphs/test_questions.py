from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.worlds.glyphs.questions import (
    QUESTION_KINDS,
    QuestionKind,
    absent_kinds,
    make_question,
    read_answer,
)
from pipelines.worlds.glyphs.scenes import KINDS, POPULAR, Scene, scenes


def test_a_question_in_words(two_objects: Scene) -> None:
    only_seven = replace(two_objects, objects=two_objects.objects[:1])
    assert make_question(only_seven, "random", "yes", 0).text == "is there a red seven ?"
    assert make_question(only_seven, "adversarial", "no", 0).text == "is there a red eight ?"


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_true(kind: QuestionKind) -> None:
    for number, scene in enumerate(scenes("heldout", 0, 200, 0)):
        present = {glyph.kind for glyph in scene.objects}
        assert make_question(scene, kind, "yes", number).asks in present
        assert make_question(scene, kind, "no", number).asks not in present


def test_absent_kinds_by_hand(two_objects: Scene) -> None:
    """Red seven (7, 0) and blue one (1, 2), the last; the latter's successor is the blue two (2, 2)."""
    assert set(absent_kinds(two_objects, "random")) == set(KINDS) - {(7, 0), (1, 2)}
    assert set(absent_kinds(two_objects, "popular")) == set(POPULAR) - {(1, 2)}
    assert absent_kinds(two_objects, "adversarial") == ((2, 2),)


def test_adversarial_falls_back_when_the_successor_is_there(two_objects: Scene) -> None:
    seven, one = two_objects.objects
    blue_two = replace(one, digit=2)
    red_eight = replace(seven, digit=8)
    # (2, 2) is followed by the absent (3, 2); with the blue two first and the blue one last, (2, 2) is there
    assert absent_kinds(replace(two_objects, objects=(one, blue_two)), "adversarial") == ((3, 2),)
    assert absent_kinds(replace(two_objects, objects=(seven, blue_two, one)), "adversarial") == ((3, 2),)
    assert absent_kinds(replace(two_objects, objects=(red_eight, seven)), "adversarial") == ((9, 0),)


def test_questions_are_deterministic_and_vary_with_the_seed(two_objects: Scene) -> None:
    asked = [make_question(two_objects, "random", "no", seed).asks for seed in range(30)]
    assert asked == [make_question(two_objects, "random", "no", seed).asks for seed in range(30)]
    assert len(set(asked)) > 10


@pytest.mark.parametrize(
    ("text", "answer"),
    [("yes", "yes"), (" No .", "no"), ("yes no", None), ("", None), ("a red seven top left .", None)],
)
def test_only_a_plain_yes_or_no_is_an_answer(text: str, answer: str | None) -> None:
    assert read_answer(text) == answer
