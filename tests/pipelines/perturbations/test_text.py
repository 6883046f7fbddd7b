"""Deleted and swapped words, cut sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.text import (
    DeleteWords,
    SwapWords,
    WordSwap,
    content_words,
    cut_at,
    cut_sentences,
    degrees,
    sentences,
)

TEXT = "A red dog sits on the green grass. It wears a hat!"
LEXICON = {"colour": ("red", "green", "blue"), "place": ("top left", "top right"), "one": ("left", "right")}
texts = st.text(alphabet="ab .!?\n'", max_size=60)


def test_content_words_golden() -> None:
    assert content_words(TEXT) == ["red", "dog", "sits", "green", "grass", "wears", "hat"]


@given(text=texts | st.just(TEXT), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_deletion_takes_its_share_and_nothing_else(text: str, share: float, seed: int) -> None:
    count = len(content_words(text))
    edited = DeleteWords(share)(text, {}, seed)
    assert len(content_words(edited)) == count - round(share * count)
    assert edited == DeleteWords(share)(text, {}, seed)
    letters = iter(text)
    assert all(letter in letters for letter in edited)  # in order: a subsequence


def test_all_key_content_golden() -> None:
    assert DeleteWords(1.0)(TEXT, {}, 3) == "A on the. It a!"
    assert DeleteWords(0.0)(TEXT, {}, 3) == TEXT
    assert (
        DeleteWords(1.0, lambda text: ["red", "dog"])(TEXT, {}, 0)
        == "A sits on the green grass. It wears a hat!"
    )


def test_degrees_are_nested() -> None:
    """4 classes of 7 content words delete 0, round(1.75) = 2, round(3.5) = 4 and round(5.25) = 5 of them."""
    versions = [content_words(edit(TEXT, {}, 11)) for edit in degrees(4)]
    assert [len(words) for words in versions] == [7, 5, 3, 2]
    assert all(set(less) <= set(more) for more, less in pairwise(versions))
    assert [edit.strength for edit in degrees(4)] == [0.0, 0.25, 0.5, 0.75]
    assert degrees(2, GraphRank(1))[1](TEXT, {}, 0) == TEXT  # half of one word rounds to none
    with pytest.raises(ValueError, match="at least 2, got 1"):
        degrees(1)


def test_swaps_golden() -> None:
    """The longest phrase wins: "top left" is one place, a lone "left" is of its own kind. Capitals stay."""
    text = "Red at the top left, on the left."
    edit = SwapWords(LEXICON, count=9)
    found = edit.swaps(text, 5)
    assert [(swap.kind, swap.start, swap.was) for swap in found] == [
        ("colour", 0, "Red"),
        ("place", 11, "top left"),
        ("one", 28, "left"),
    ]
    assert found[0].now in ("Green", "Blue")
    assert found[1:] == (WordSwap("place", 11, "top left", "top right"), WordSwap("one", 28, "left", "right"))
    assert edit(text, {}, 5) == f"{found[0].now} at the top right, on the right."


@given(
    words=st.lists(st.sampled_from(["red", "green", "blue", "dog", "top left", "reddish"]), max_size=8),
    count=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_a_swap_changes_its_count_of_phrases(words: list[str], count: int, seed: int) -> None:
    text, edit = " ".join(words), SwapWords(LEXICON, count)
    swaps = edit.swaps(text, seed)
    assert len(swaps) == min(count, sum(word not in ("dog", "reddish") for word in words))
    assert all(swap.was != swap.now and swap.now in LEXICON[swap.kind] for swap in swaps)
    edited = edit(text, {}, seed)
    assert edited == edit(text, {}, seed)
    undone = edited
    for swap in swaps:  # from the left, where earlier swaps are undone already
        undone = undone[: swap.start] + swap.was + undone[swap.start + len(swap.now) :]
    assert undone == text


def test_a_lexicon_needs_a_choice() -> None:
    with pytest.raises(ValueError, match="'colour' needs two phrases"):
        SwapWords({"colour": ("red", "Red")})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SwapWords(LEXICON, 0)
    assert SwapWords({})("red", {}, 0) == "red"


def test_the_longest_of_two_phrases_that_start_alike_wins() -> None:
    assert SwapWords({"colour": ("light", "light blue")})("a light blue dog", {}, 0) == "a light dog"


def test_sentences_golden() -> None:
    assert sentences(TEXT) == ["A red dog sits on the green grass.", " It wears a hat!"]
    assert sentences("It costs 3.50 . Really ?! yes") == ["It costs 3.50 .", " Really ?!", " yes"]
    assert sentences(" \n") == []


@given(text=texts, seed=st.integers(0, 999))
def test_cuts_lie_inside_their_sentences(text: str, seed: int) -> None:
    cuts = cut_sentences(text, seed)
    assert cuts == cut_sentences(text, seed)
    assert len(cuts) == len(sentences(text))
    assert "".join(cut.kept + cut.removed for cut in cuts) == text.rstrip()
    before = ""
    for cut in cuts:
        assert cut.before == before
        assert text.startswith(cut.prefix + cut.removed)
        assert cut.removed.strip()
        assert bool(cut.kept) == (len((cut.kept + cut.removed).split()) > 1)
        before += cut.kept + cut.removed


def test_a_cut_is_anywhere_in_its_sentence() -> None:
    """Three words leave one or two of them."""
    assert {cut_sentences("one two three", seed)[0].kept for seed in range(30)} == {"one", "one two"}


@pytest.mark.parametrize(
    ("share", "kept"), [(0.0, ""), (0.5, "one  two"), (0.6, "one  two"), (1.0, "one  two three four")]
)
def test_cut_at_golden(share: float, kept: str) -> None:
    """Of four words round(share * 4) are kept: 0, 2, 2 (of 2.4) and 4."""
    cut = cut_at("one  two three four", share)
    assert (cut.prefix, cut.prefix + cut.removed) == (kept, "one  two three four")


def test_cut_at_refuses_other_shares() -> None:
    with pytest.raises(ValueError, match="0 to 1, got 2"):
        cut_at("x", 2)


def test_content_is_a_plug() -> None:
    def last(text: str) -> Sequence[str]:
        return ["grass"]

    assert DeleteWords(1.0, last)(TEXT, {}, 0) == "A red dog sits on the green. It wears a hat!"
