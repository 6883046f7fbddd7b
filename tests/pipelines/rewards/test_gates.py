"""Gates: each reason by an example at its border, and how pairs are proposed; likeness of texts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rewards.gates import (
    Confident,
    Floors,
    LengthRatio,
    MinGap,
    NoTies,
    Similarity,
    admitted,
    distinct,
)
from pipelines.rewards.similarity import bleu, token_jaccard
from pipelines.types import Score


def scores(*values: float | None) -> list[Score]:
    return [Score(value=None, missing="m") if v is None else Score(value=v) for v in values]


def test_reasons_at_their_borders(rollout):
    pair = [rollout("a red seven top left .", 6), rollout("a red one top left .", 3)]
    two = scores(2.0, 0.0)

    def reasons(*gates):
        return [gate(pair, two, 0, 1) for gate in gates]

    assert reasons(NoTies(), MinGap(2.0), MinGap(2.01), MinGap(0, of_std=2.0), MinGap(0, of_std=2.01)) == [
        None,
        None,
        "gap_too_small",
        None,  # the deviation of 2 and 0 is 1
        "gap_too_small",
    ]
    assert reasons(Floors(2.0, 0.0), Floors(winner_at_least=2.1), Floors(loser_at_most=-0.1)) == [
        None,
        "winner_below_floor",
        "loser_above_ceiling",
    ]
    assert reasons(LengthRatio(2.0), LengthRatio(1.9)) == [None, "length_ratio"]
    alike = 4 / 6  # of a, red, top, left and two digits
    assert token_jaccard(pair[0].response.text, pair[1].response.text) == pytest.approx(alike)
    assert reasons(Similarity(alike), Similarity(0.66), Similarity(least=0.67)) == [
        None,
        "too_similar",
        "too_different",
    ]
    assert NoTies()(pair, scores(1.0, 1.0), 0, 1) == "tie"
    doubtful = [Score(value=1.0), Score(value=0.0, confidence=0.4)]
    assert (
        Confident(0.5)(pair, doubtful, 0, 1) == "not_confident"
        and Confident(0.4)(pair, doubtful, 0, 1) is None
    )
    with pytest.raises(ValueError, match="score is missing"):
        NoTies()(pair, scores(1.0, None), 0, 1)


def test_the_best_meets_the_worst(rollout):
    answers = [rollout(str(i)) for i in range(6)]
    given_scores = scores(3.0, None, 1.0, 5.0, 1.0, 2.0)  # ranked: 3, 0, 5, 2, 4
    pairs, refused = admitted(answers, given_scores, [NoTies()], most=3)
    assert pairs == [(3, 4), (0, 2)] and not refused  # five known answers make two pairs
    pairs, refused = admitted(answers, given_scores, [NoTies(), MinGap(3.0)], most=3)
    assert pairs == [(3, 4)] and refused == Counter(gap_too_small=1)
    assert admitted(answers, given_scores, [])[0] == [(3, 4)]


def test_nothing_to_pair(rollout):
    two = [rollout(), rollout()]
    assert admitted(two, scores(1.0, None), [NoTies()]) == ([], Counter(missing_score=1))
    assert admitted(two[:1], scores(1.0), [NoTies()]) == ([], Counter(too_few_responses=1))
    assert admitted(two, scores(1.0, 1.0), [NoTies()]) == ([], Counter(tie=1))
    assert admitted(two, scores(2.0, 1.0), [NoTies()]) == ([], Counter(same_response=1))


def test_duplicates_are_left_out(rollout):
    answers = [rollout(t) for t in ("a red seven .", "A seven, red!", "a blue one .", "a red one .")]
    assert distinct(answers) == [0, 2, 3]
    assert distinct(answers, most=0.5) == [0, 2]  # "a red one" shares 2 of 4 words with the first
    assert distinct([]) == []


def test_bleu_by_hand():
    """Candidate "a b c d", reference "a b c e": precisions 3/4, 2/3, 1/2, and (0.5 for none) / 1."""
    assert bleu("a b c d", "a b c e") == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert bleu("a b", "a b c d") == pytest.approx(2.718281828 ** (1 - 4 / 2))  # brevity alone
    assert bleu("x y", "a b") == 0.0 and bleu("", "") == 1.0 and bleu("", "a") == 0.0


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_likeness_is_a_share_and_1_for_equal_texts(a, b):
    one, other = " ".join(a), " ".join(b)
    for measure in (token_jaccard, bleu):
        assert 0 <= measure(one, other) <= 1 and measure(one, one) == pytest.approx(1.0)
    assert token_jaccard(one, other) == token_jaccard(other, one)
