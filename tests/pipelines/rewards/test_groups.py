"""Numbers within their group: win probabilities, standardisation, HARMO's hybrid and length penalty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rewards.groups import (
    AnchoredLength,
    Standardised,
    VerifiedOr,
    WinProbability,
    advantages,
    harmo,
    length_penalty,
    standardised,
    win_probabilities,
)
from pipelines.rewards.rules import ExactMatch, Format

REWARDS = st.lists(st.floats(-20, 20), min_size=1, max_size=8)


def test_win_probabilities_of_two():
    """Rewards log 3 and 0: sigma(log 3) = 3/4, with the self-comparison (3/4 + 1/2) / 2 = 5/8."""
    assert win_probabilities([math.log(3), 0.0]) == pytest.approx([0.625, 0.375])


@given(REWARDS)
def test_win_probabilities_average_to_a_half_and_self_comparison_shrinks(rewards):
    p = win_probabilities(rewards)
    assert p.mean() == pytest.approx(0.5)
    n = len(rewards)
    if n > 1:
        others = (n * p - 0.5) / (n - 1)
        assert np.all(np.abs(p - 0.5) <= np.abs(others - 0.5) + 1e-12)


@given(REWARDS, st.floats(-100, 100))
def test_advantages_do_not_see_a_common_shift(rewards, shift):
    assert advantages([r + shift for r in rewards]) == pytest.approx(advantages(rewards), abs=1e-9)
    assert advantages(rewards).sum() == pytest.approx(0, abs=1e-9)


@given(REWARDS)
def test_standardised_rewards_keep_their_order(rewards):
    z = standardised(rewards)
    assert abs(float(z.mean())) < 1e-6 and (np.allclose(z, 0) or float(z.std()) == pytest.approx(1.0))
    order = np.argsort(rewards, kind="stable")
    assert np.all(np.diff(z[order]) >= -1e-12)


def test_missing_scores_do_not_enter_the_standardisation(rollout, told, group):
    a, b, c = group(Standardised(told({"a": 1.0, "b": 3.0, "c": None})), [rollout(t) for t in "abc"])
    assert (a.value, b.value) == (-1.0, 1.0) and c.value is None and b.parts["raw"] == 3.0
    wins = group(WinProbability(told({"a": 0.0, "b": math.log(3), "c": None})), [rollout(t) for t in "abc"])
    assert wins[1].value == pytest.approx(0.625) and wins[2].value is None


@given(st.integers(0, 10_000), st.floats(1, 5000), st.floats(0, 5), st.floats(0.05, 2))
def test_the_length_penalty_is_0_at_the_anchor_and_capped(length, anchor, most, tau):
    assert -most <= length_penalty(length, anchor, most, tau) <= 0
    assert length_penalty(round(anchor), float(round(anchor)), most, tau) == 0
    assert length_penalty(length, None, most, tau) == 0


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.05, 2))
def test_the_further_from_the_anchor_the_larger_the_penalty(a, b, tau):
    near, far = sorted((a, b))
    for sign in (1, -1):
        penalties = [length_penalty(500 + sign * d, 500.0, 2.0, tau) for d in (near, far)]
        assert penalties[0] >= penalties[1]


def test_the_anchor_is_the_mean_length_of_correct_answers(rollout, group):
    """Correct lengths 4 and 6: L* = 5. At tau 0.5, a length of 6 costs 1 / 2.5 = 0.4; 10 costs the cap."""
    rows = [("yes", 4), ("yes", 6), ("no", 10), ("no", 5)]
    rollouts = [rollout(text, tokens=n, answer="yes") for text, n in rows]
    scores = group(AnchoredLength(ExactMatch()), rollouts)
    assert [s.value for s in scores] == pytest.approx([-0.4, -0.4, -1.0, 0.0])
    none = group(AnchoredLength(ExactMatch()), [rollout("no", tokens=n, answer="yes") for n in (1, 50)])
    assert [s.value for s in none] == [0.0, 0.0]


def test_the_rule_judges_what_can_be_verified_and_the_model_the_rest(rollout, told, group):
    both = [rollout("a", answer="a"), rollout("a"), rollout("b", answer="a")]
    hybrid = VerifiedOr(ExactMatch(), told({"a": 0.3, "b": 0.9}))
    assert [s.value for s in group(hybrid, both)] == [1.0, 0.3, 0.0]


def test_harmo_is_monotone_in_each_component(rollout, told, group):
    """Correct and well-formed > either alone > neither, at equal lengths."""
    form = Format(r"<.*>")
    rule = ExactMatch("answer")
    texts = ["<a>", "a", "<b>", "b"]
    values = [s.value for s in group(harmo(rule, told({}), form), [rollout(t, answer="a") for t in texts])]
    assert values[0] == pytest.approx(2.0) and values[3] == pytest.approx(-2.0)
    assert values[1] == pytest.approx(0.0) and values[2] == pytest.approx(0.0)
    long = group(
        harmo(rule, told({}), form), [rollout("a", tokens=2, answer="a"), rollout("a", 9, answer="a")]
    )
    assert long[0].value == pytest.approx(long[1].value)  # both as far from their mean


def test_harmo_leaves_out_a_component_that_is_missing(rollout, told, group):
    model = told({"a": None, "b": 1.0, "c": 3.0})
    a, b, c = group(harmo(ExactMatch(), model, Format(".")), [rollout(t) for t in "abc"])
    assert a.value == pytest.approx(0.0) and "hybrid" not in a.parts and a.confidence == pytest.approx(2 / 3)
    assert b.value == pytest.approx(-1.0) and c.value == pytest.approx(1.0)
