from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.worlds.glyphs.captions import Mention, mentions_of, read_caption, write_caption
from pipelines.worlds.glyphs.prior import invented, successor
from pipelines.worlds.glyphs.scenes import KINDS, Scene
from pipelines.worlds.glyphs.vocabulary import WORDS

mentions = st.builds(Mention, st.integers(0, 9), st.integers(0, 2), st.integers(0, 3))
SEVEN, ONE = Mention(7, 0, 0), Mention(1, 2, 3)


def test_a_caption_is_written_in_words(two_objects: Scene) -> None:
    assert mentions_of(two_objects) == (SEVEN, ONE)
    assert write_caption((SEVEN, ONE)) == "a red seven top left and a blue one bottom right ."


@given(st.lists(mentions, min_size=1, max_size=6))
def test_what_is_written_is_read_back_exactly(said: list[Mention]) -> None:
    reading = read_caption(write_caption(said))
    assert reading.mentions == tuple(said)
    assert reading.malformed == 0


@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_reading_any_words_never_fails_and_accounts_for_every_clause(words: list[str]) -> None:
    text = " ".join(words)
    reading = read_caption(text)
    body = text.removesuffix(".") if text.endswith(".") else text
    clauses = " ".join(body.split()).split(" and ")
    stopped = bool(words) and words[-1] == "."
    assert len(reading.mentions) + reading.malformed == len(clauses) + (not stopped)


@pytest.mark.parametrize(
    ("text", "said", "malformed"),
    [
        (" A red SEVEN top left.", (SEVEN,), 0),
        ("a red seven top left", (SEVEN,), 1),  # cut before the stop
        ("a red seven top left and", (), 2),  # "... left and" is one clause of six words, and no stop
        ("a red seven top left and .", (), 1),
        ("a red seven top left and a blue .", (SEVEN,), 1),
        ("a red seven top left a blue one bottom right .", (), 1),  # two objects without "and"
        ("a seven red top left .", (), 1),
        ("a red seven left top .", (), 1),
        ("a red seven top left and a red seven top left .", (SEVEN, SEVEN), 0),
        ("a red seven top left . a blue one bottom right .", (), 1),
        ("yes", (), 2),
        ("", (), 2),
        (".", (), 1),
    ],
)
def test_malformed_captions_are_counted(text: str, said: tuple[Mention, ...], malformed: int) -> None:
    reading = read_caption(text)
    assert reading.mentions == said
    assert reading.malformed == malformed


def test_the_successor_of_every_kind_is_another_kind_and_nine_wraps() -> None:
    assert successor((9, 1)) == (0, 1)
    assert sorted(successor(kind) for kind in KINDS) == sorted(KINDS)


def test_the_prior_adds_the_next_digit_in_the_last_colour_in_the_first_free_cell() -> None:
    assert invented((SEVEN, ONE)) == Mention(2, 2, 1)
    assert invented((ONE,)) == Mention(2, 2, 0)


def test_the_prior_adds_nothing_to_nothing_or_to_a_full_grid() -> None:
    assert invented(()) is None
    assert invented([Mention(1, 1, cell) for cell in range(4)]) is None


@given(st.lists(mentions, min_size=1, max_size=4))
def test_the_prior_follows_from_the_text_alone(said: list[Mention]) -> None:
    """Everything it needs is in the caption: reading it back from words gives the same addition."""
    extra = invented(read_caption(write_caption(said)).mentions)
    assert extra == invented(said)
    if extra is not None:
        assert extra.cell not in {mention.cell for mention in said}
        assert (extra.digit, extra.colour) == ((said[-1].digit + 1) % 10, said[-1].colour)
