"""Sums, means, votes, directions and ensembles: hand-derived values, and what happens to missing parts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.rewards.aggregate import Direction, Ensemble, Harmonic, Vote, WeightedSum


def test_a_weighted_sum_keeps_its_components_as_parts(rollout, told, group):
    """2 * 3 - 1 * 4 = 2; the parts of the first component keep their names."""
    reward = WeightedSum(
        {"a": told({"x": {"right": 1.0, "wrong": 2.0}}), "b": told({"x": 4.0})}, {"a": 2.0, "b": -1.0}
    )
    score = group(reward, [rollout("x")])[0]
    assert score.value == 2.0 and score.confidence == 1.0
    assert score.parts == {"right": 1.0, "wrong": 2.0, "a": 3.0, "b": 4.0}


def test_parts_that_clash_are_told_apart(rollout, told, group):
    reward = WeightedSum({"a": told({"x": {"n": 1.0, "b": 5.0}}), "b": told({"x": {"n": 2.0}})})
    assert group(reward, [rollout("x")])[0].parts == {"a/n": 1.0, "a/b": 5.0, "a": 6.0, "b/n": 2.0, "b": 2.0}


def test_a_missing_component_is_left_out_and_the_rest_reweighted(rollout, told, group):
    """Weights 1, 2, 1 with the last missing: (1 * 3 + 2 * 6) * 4 / 3 = 20; unscaled it would be 15."""
    reward = WeightedSum(
        {"a": told({"x": 3.0}), "b": told({"x": 6.0}), "c": told({"x": None}, "judge_not_parsed")},
        {"b": 2.0},
    )
    score = group(reward, [rollout("x")])[0]
    assert score.value == pytest.approx(20.0) and score.confidence == 0.75
    assert "c" not in score.parts
    nothing = group(WeightedSum({"c": told({"x": None}, "judge_not_parsed")}), [rollout("x")])[0]
    assert nothing.value is None and nothing.missing == "c: judge_not_parsed"


def test_equal_components_survive_any_missing_one(rollout, told, group):
    """Where all components agree the sum does not depend on which one is missing."""
    for lost in range(3):
        parts = {str(i): told({"x": None if i == lost else 2.5}) for i in range(3)}
        assert group(WeightedSum(parts), [rollout("x")])[0].value == pytest.approx(7.5)


def test_the_penalty_for_unfinished_answers_applies_once(rollout, told, group):
    inner = WeightedSum({"r": told({"x": 1.0})})
    reward = WeightedSum({"a": inner, "b": inner}, unfinished=8.0)
    done, cut = group(reward, [rollout("x"), rollout("x", finished=False)])
    assert (done.value, cut.value) == (2.0, -6.0) and cut.parts["unfinished"] == -8.0


def test_reversing_a_reward_swaps_the_order(rollout, told, group):
    table = {"a": 1.0, "b": -2.0, "c": 0.5}
    plus = group(WeightedSum({"r": told(table)}), [rollout(t) for t in table])
    minus = group(WeightedSum({"r": told(table)}, {"r": -1.0}), [rollout(t) for t in table])
    assert [s.value for s in minus] == [-s.value for s in plus]


def test_a_watched_component_does_not_count(rollout, told, group):
    reward = WeightedSum({"a": told({"x": 1.0}), "seen": told({"x": None})}, {"seen": 0.0})
    assert group(reward, [rollout("x")])[0].value == 1.0
    with pytest.raises(ValueError, match="every weight is 0"):
        WeightedSum({"a": told({})}, {"a": 0.0})
    with pytest.raises(ValueError, match="got \\['b'\\]"):
        WeightedSum({"a": told({})}, {"b": 1.0})


def test_the_harmonic_mean(rollout, told, group):
    """2 / (1/1 + 1/3) = 1.5; with weights 1 and 3: 4 / (1/1 + 3/3) = 2."""
    parts = {"a": told({"x": 1.0, "y": 0.0, "z": -1.0, "m": None}), "b": told(dict.fromkeys("xyzm", 3.0))}
    x, y, z, m = group(Harmonic(parts), [rollout(t) for t in "xyzm"])
    assert x.value == pytest.approx(1.5) and y.value == 0.0 and m.value == 3.0
    assert z.missing == "harmonic_of_a_negative: a = -1"
    assert group(Harmonic(parts, {"b": 3.0}), [rollout("x")])[0].value == pytest.approx(2.0)


def test_a_direction(rollout, told, group):
    """cos 30 * 2 + sin 30 * 6 = 4.7320508; at 0 degrees the second reward does not count at all."""
    rewards = told({"x": {"help": 2.0, "verbose": 6.0}, "y": {"help": 2.0}})
    tilted = Direction.of_angle(rewards, "help", "verbose", 30)
    x, y = group(tilted, [rollout("x"), rollout("y")])
    assert x.value == pytest.approx(math.sqrt(3) + 3) and y.missing == "no_such_part: verbose"
    straight = group(Direction(rewards, {"help": 1.0, "verbose": 0.0}), [rollout("x"), rollout("y")])
    assert [s.value for s in straight] == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"length 1\.41"):
        Direction(rewards, {"help": 1.0, "verbose": 1.0})


def test_an_ensemble_and_its_disagreement(rollout, told, group):
    """Members 1, 3: mean 2, deviation 1, confidence 1/2; pessimism 0.5 takes half the deviation off."""
    members = {"a": told({"x": 1.0, "y": 1.0}), "b": told({"x": 3.0, "y": None})}
    x, y = group(Ensemble(members, pessimism=0.5), [rollout("x"), rollout("y")])
    assert (x.value, x.confidence, x.parts["disagreement"]) == (1.5, 0.5, 1.0)
    assert str(y.missing).startswith("no_quorum: 1 of 2")
    alone = group(Ensemble(members, quorum=1), [rollout("y")])[0]
    assert (alone.value, alone.confidence) == (1.0, 0.5)
    with pytest.raises(ValueError, match="quorum 3 of 2"):
        Ensemble(members, quorum=3)


def test_a_vote(rollout, told, group):
    """Two voters over a, b, c. a beats b for both; a against c is 1 and 0; b against c is 1/2 (tie) and 0.

    Shares: a (1 + 1/2) / 2 = 3/4, agreement (1 + 0) / 2; b (0 + 1/4) / 2 = 1/8, agreement (1 + 1/2) / 2.
    """
    voters = {"u": told({"a": 9.0, "b": 5.0, "c": 5.0}), "v": told({"a": 0.2, "b": 0.1, "c": 0.3})}
    a, b, c = group(Vote(voters), [rollout(t) for t in "abc"])
    assert (a.value, a.confidence) == (0.75, 0.5)
    assert (b.value, b.confidence) == (0.125, 0.75)
    assert c.value == pytest.approx(1.5 - 0.75 - 0.125) and c.parts == {"u": 5.0, "v": 0.3, "agreement": 0.25}
    silent = group(Vote({"u": told({"a": None, "b": 1.0})}), [rollout("a"), rollout("b")])
    assert silent[0].missing == "no_votes: u: unknown" and silent[1].value is None


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6), st.floats(0.5, 3))
def test_votes_do_not_depend_on_a_voters_scale(values, scale):
    import asyncio

    from pipelines.rewards import judge_group
    from pipelines.types import Message, Part, Prompt, Response, Rollout, Score

    prompt = Prompt(id="p", messages=(Message(role="user", parts=(Part(kind="text", text="?"),)),))
    rollouts = [Rollout(prompt=prompt, response=Response(tokens=(i,), text="")) for i in range(len(values))]

    def voter(factor: float):
        return lambda p, r: Score(value=factor * values[r.tokens[0]])

    one, other = (asyncio.run(judge_group(Vote({"v": voter(f)}), rollouts, {})) for f in (1.0, scale))
    assert [s.value for s in one] == [s.value for s in other]
    assert sum(s.value for s in one) == pytest.approx(len(values) / 2)
