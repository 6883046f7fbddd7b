"""The next token of a contrast, by hand and by properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decoding import Contrast
from serving.replicas.next_token import Logps, chosen, plausible

Pairs = st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=12)


def logs(*probabilities: float) -> Logps:
    return {index: math.log(p) for index, p in enumerate(probabilities)}


def pick(own: Logps, other: Logps, law: Contrast, temperature: float = 0.0, uniform: float = 0.0) -> int:
    kept = plausible(own, law.cutoff)
    return chosen(kept, other, law, temperature=temperature, top_p=1.0, uniform=uniform)


def test_the_contrast_by_hand():
    """p = (.5, .4, .1) with the picture, q = (.8, .1, .1) with the damaged one. Scores p^2 / q with alpha 1:
    .25/.8 = .3125, .16/.1 = 1.6, .01/.1 = .1: the second token. With alpha 0 the first, whatever q is."""
    own, other = logs(0.5, 0.4, 0.1), logs(0.8, 0.1, 0.1)
    assert pick(own, other, Contrast(alpha=1.0, cutoff=0.1)) == 1
    assert pick(own, other, Contrast(alpha=0.0, cutoff=0.1)) == 0


def test_an_implausible_token_never_wins_by_hand():
    """p = (.6, .35, .05), q = (.5, .4999, .0001): p^2 / q is .72, .245 and 25. With beta .1 tokens need
    p >= .06, so the third is out and the first wins; with beta .05 they need .03, and the third wins."""
    own, other = logs(0.6, 0.35, 0.05), logs(0.5, 0.4999, 0.0001)
    assert plausible(own, 0.1) == {0: math.log(0.6), 1: math.log(0.35)}
    assert pick(own, other, Contrast(alpha=1.0, cutoff=0.1)) == 0
    assert pick(own, other, Contrast(alpha=1.0, cutoff=0.05)) == 2


@pytest.mark.parametrize(
    ("temperature", "uniform", "token"),
    [
        *(
            (1.0, uniform, token)
            for uniform, token in ((0.0, 0), (0.155, 0), (0.156, 1), (0.95, 1), (0.951, 2))
        ),
        *((0.5, uniform, token) for uniform, token in ((0.036, 0), (0.037, 1), (0.996, 1), (0.997, 2))),
    ],
)
def test_tokens_are_drawn_from_the_contrast_by_hand(temperature: float, uniform: float, token: int):
    """Scores .3125, 1.6 and .1 of the first test sum to 2.0125: shares .1553, .7950 and .0497, so the bounds
    are .1553 and .9503. At temperature 1/2 scores are squared: .0977, 2.56, .01; bounds .0366 and .9963."""
    own, other, law = logs(0.5, 0.4, 0.1), logs(0.8, 0.1, 0.1), Contrast(alpha=1.0, cutoff=0.1)
    assert pick(own, other, law, temperature=temperature, uniform=uniform) == token


@given(Pairs, st.floats(0, 5), st.floats(0.01, 1), st.floats(0, 0.999), st.sampled_from([0.0, 0.7, 1.3]))
def test_the_choice_is_plausible_and_the_same_picture_changes_no_greedy_choice(
    pairs: list[tuple[float, float]], alpha: float, beta: float, uniform: float, temperature: float
):
    own = {i: p for i, (p, _) in enumerate(pairs)}
    other = {i: q for i, (_, q) in enumerate(pairs)}
    law = Contrast(alpha=alpha, cutoff=beta)
    best = max(own, key=lambda token: own[token])
    assert own[pick(own, other, law, temperature, uniform)] >= own[best] + math.log(beta) - 1e-9
    assert own[pick(own, own, law)] == own[best]
    assert pick(own, other, Contrast(alpha=alpha, cutoff=1.0)) in plausible(own, 1.0)


@given(Pairs, st.floats(0, 5), st.floats(-3, 3))
def test_logits_and_log_probabilities_give_the_same_choice(
    pairs: list[tuple[float, float]], alpha: float, shift: float
):
    """A constant added to one side is what normalisation adds; it must not move the choice."""
    own = {i: p for i, (p, _) in enumerate(pairs)}
    other = {i: q for i, (_, q) in enumerate(pairs)}
    moved = {i: q + shift for i, q in other.items()}
    law = Contrast(alpha=alpha, cutoff=0.1)
    score = {i: (1 + alpha) * own[i] - alpha * other[i] for i in plausible(own, 0.1)}
    greedy = pick(own, moved, law)
    assert score[greedy] == pytest.approx(max(score.values()), abs=1e-9)
