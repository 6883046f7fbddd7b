"""Graph rank: a golden by hand, invariants, what counts as a word."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.keywords import GraphRank, hashed_ngrams, stem, words_of

PLAIN = GraphRank(gamma=0.0, decay=0.0)


def test_rank_golden() -> None:
    """Words at 0, 1, 2: proximities 1/2, 1/2 and 1/3. An end sends 3/5 to the middle, 2/5 to the other end.

    With damping 0.85, ends p and middle q: q = 0.05 + 0.85 (2 * 0.6 p) and 2p + q = 1, so p = 0.95 / 3.02.
    """
    ranks = PLAIN.rank("cat mat hat")
    end = 0.95 / 3.02
    assert ranks == pytest.approx({"cat": end, "mat": 1 - 2 * end, "hat": end}, abs=1e-9)
    assert PLAIN("cat mat hat") == ("mat", "cat", "hat")


def test_repetition_adds_proximity() -> None:
    """Positions 0 dog, 1 cat, 2 dog, 3 fox: dog-cat 1/2 + 1/2 = 1, dog-fox 1/4 + 1/2 = 3/4, cat-fox 1/3.

    Sums: dog 7/4, cat 4/3, fox 13/12. dog sends 4/7 to cat, 3/7 to fox; cat 3/4 and 1/4; fox 9/13 and 4/13.
    """
    ranks = PLAIN.rank("dog cat dog fox")
    steps = np.array([[0, 3 / 4, 9 / 13], [4 / 7, 0, 4 / 13], [3 / 7, 1 / 4, 0]])
    expected = np.linalg.solve(np.eye(3) - 0.85 * steps, np.full(3, 0.05))
    assert list(ranks.values()) == pytest.approx(expected.tolist(), abs=1e-9)


def test_early_words_are_boosted() -> None:
    """Decay ln 2 halves what flows into each later word: boosts 1, 1/2, 1/4 on proximities 1/2, 1/2 and 1/3.

    The first word sends 1/4 and 1/12, so 3/4 and 1/4; the second 1/2 and 1/8, so 4/5 and 1/5; the third 1/3
    and 1/4, so 4/7 and 3/7.
    """
    ranks = GraphRank(gamma=0.0, decay=np.log(2)).rank("cat mat hat")
    steps = np.array([[0, 4 / 5, 4 / 7], [3 / 4, 0, 3 / 7], [1 / 4, 1 / 5, 0]])
    expected = np.linalg.solve(np.eye(3) - 0.85 * steps, np.full(3, 0.05))
    assert list(ranks.values()) == pytest.approx(expected.tolist(), abs=1e-9)
    assert ranks["cat"] > ranks["hat"]


def test_word_vectors_pull_similar_words_together() -> None:
    """Two of three words have the same vector: with gamma the third, unlike both, loses rank."""

    def vectors(word: str) -> np.ndarray:
        return np.array([1.0, 0.0]) if word in ("cat", "hat") else np.array([0.0, 1.0])

    near = GraphRank(gamma=2.0, decay=0.0, vectors=vectors).rank("cat mat hat")
    assert near["mat"] < PLAIN.rank("cat mat hat")["mat"]


def test_forms_of_a_word_do_not_vote_for_each_other() -> None:
    """ "dog" and "dogs" are one topic, so both send everything to "ball"."""
    ranks = PLAIN.rank("dog ball dogs")
    assert ranks["ball"] == pytest.approx(0.05 + 0.85 * (1 - ranks["ball"]), abs=1e-9)


def test_stop_words_and_case() -> None:
    assert GraphRank(top=9)("The image shows a Dog; the dog is there.") == ("dog",)
    assert set(GraphRank(top=9)("a red seven top left and a blue one .")) == {
        "red", "seven", "top", "left", "blue", "one",
    }  # fmt: skip
    assert words_of("It\u2019s Anna-Lena's 2 dogs, caf\u00e9_x") == [
        "it\u2019s",
        "anna-lena's",
        "dogs",
        "caf\u00e9",
        "x",
    ]


@pytest.mark.parametrize("text", ["", " . ", "the and of 12 34", "\u2026!?"])
def test_no_candidates(text: str) -> None:
    assert GraphRank()(text) == ()


@given(st.lists(st.sampled_from(["dog", "dogs", "red", "blue", "seven", "ball", "tree", "sky"]), max_size=12))
def test_rank_is_a_distribution_over_the_words(words: list[str]) -> None:
    rank = GraphRank(top=3)
    ranks = rank.rank(" ".join(words))
    assert list(ranks) == list(dict.fromkeys(words))
    if words:
        assert sum(ranks.values()) == pytest.approx(1.0)
    chosen = rank(" ".join(words))
    assert len(chosen) == min(3, len(set(words)))
    assert all(round(ranks[a], 8) >= round(ranks[b], 8) for a, b in pairwise(chosen))


def test_hashed_vectors_know_spelling() -> None:
    def cosine(a: str, b: str) -> float:
        x, y = hashed_ngrams(a), hashed_ngrams(b)
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine("handwriting", "handwritten") > 0.5 > cosine("handwriting", "purple")
    assert hashed_ngrams("x").shape == (256,)


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("dogs", "dog"),
        ("glass", "glass"),
        ("bus", "bus"),
        ("boxes", "box"),
        ("berries", "berry"),
        ("dog's", "dog"),
    ],
)
def test_stem(word: str, root: str) -> None:
    assert stem(word) == root


def test_top_must_be_positive() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        GraphRank(top=0)
