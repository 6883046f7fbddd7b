"""Constraints: the checkers by hand, and that what is drawn has the status that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.constraints import (
    FAMILIES,
    AtLeastWords,
    AtMostWords,
    Avoids,
    Constraint,
    EndsWith,
    Lowercase,
    Mentions,
    Sentences,
    StartsWith,
    draw,
)

VOCABULARY = ("red", "elephant", "top left", "7")


@pytest.mark.parametrize(
    ("constraint", "yes", "no"),
    [
        (AtMostWords(2), "a dog", "a red dog"),
        (AtLeastWords(3), "a red dog", "a dog"),
        (Mentions("Dog"), "The dog!", "The dogs"),
        (Avoids("dog"), "hot-dogs", "a Dog."),
        (Lowercase(), "a dog.", "A dog."),
        (StartsWith("a red"), "A red dog", "Red, a dog"),
        (EndsWith("red dog"), "A red dog.", "A dog, red."),
        (Sentences(2), "A dog. It sits", "A dog."),
    ],
)
def test_checkers_golden(constraint: Constraint, yes: str, no: str) -> None:
    assert constraint(yes)
    assert not constraint(no)


@given(
    text=st.text(alphabet="abAB .!", max_size=40) | st.just("A red dog sits. It barks!"),
    satisfied=st.booleans(),
    seed=st.integers(0, 999),
)
def test_what_is_drawn_has_the_status_that_was_asked_for(text: str, satisfied: bool, seed: int) -> None:
    drawn = draw(text, satisfied, seed, vocabulary=VOCABULARY)
    assert drawn is not None
    assert drawn(text) == satisfied
    assert drawn == draw(text, satisfied, seed, vocabulary=VOCABULARY)
    assert drawn.instruction()


def test_every_family_is_drawn() -> None:
    for satisfied in (True, False):
        seeds = range(200)
        drawn = [draw("A red dog sits. It barks!", satisfied, seed, vocabulary=VOCABULARY) for seed in seeds]
        missing = set(FAMILIES) - {type(constraint) for constraint in drawn}
        assert missing == ({Lowercase} if satisfied else set())


def test_none_when_no_family_fits() -> None:
    """Nothing unsaid to ask for without a vocabulary; a lower-case text cannot violate lower case."""
    assert draw("a dog", False, 0, families=(Mentions, Lowercase, StartsWith)) is None
    assert draw("a dog", True, 0, families=()) is None


def test_instructions() -> None:
    assert AtMostWords(3).instruction() == "Answer in at most 3 words."
    assert Mentions("red").instruction({"Mentions": "say {value} ."}) == "say red ."
    assert Lowercase().instruction({"Mentions": "say {value} ."}) == "Write in lower case only."
