"""The canary's gate: how rarely it errs, how fast it fires, and what it counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.registry.canary import GROWTH, CanaryGate, CanaryRules, rank_sum


def fine(**changes: Any) -> dict[str, Any]:
    return {"status": 200, "tokens": 12, "finish": ["stop"]} | changes


def fed(gate: CanaryGate, canary: list[dict[str, Any]], stable: list[dict[str, Any]]) -> int | None:
    """Samples of both slots in turn, a verdict asked for after each; the canary's samples at its verdict."""
    for count, (new, old) in enumerate(zip(canary, stable, strict=True), start=1):
        gate.add("stable", old)
        gate.add("canary", new)
        if gate.verdict() is not None:
            return count
    return None


BROKEN = {
    "errors": fine(status=500),
    "empty": fine(tokens=0),
    "cut": fine(finish=["length"]),
    "refusals": fine(refused=True),
    "disliked": {"rating": -1},
    "lost": {"won": False},
    "length": fine(tokens=120),
}
GOOD = {"refusals": fine(refused=False), "disliked": {"rating": 1}}


@pytest.mark.parametrize("measure", BROKEN)
def test_a_wholly_broken_canary_is_taken_back_at_the_first_look(measure: str) -> None:
    gate = CanaryGate(CanaryRules())

    fired = fed(gate, [BROKEN[measure]] * 40, [GOOD.get(measure, fine())] * 40)

    verdict = gate.verdict()
    assert fired == 20 and verdict is not None and verdict.startswith(f"rollback: {measure}: ")


def test_a_canary_that_fails_one_answer_in_five_is_found_within_300() -> None:
    """Beside a stable version that fails 1%, in each of 100 simulated runs."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        canary = [fine(status=500 if bad else 200) for bad in rng.random(300) < 0.2]
        stable = [fine(status=500 if bad else 200) for bad in rng.random(300) < 0.01]
        found.append(fed(CanaryGate(CanaryRules()), canary, stable))
    assert all(count is not None for count in found)


def noisy(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    """Traffic with every measure: some errors, cuts, refusals, ratings, comparisons that are a toss-up."""
    draws = rng.random((n, 5)) < (0.1, 0.2, 0.1, 0.5, 0.5)
    return [
        fine(
            status=500 if failed else 200,
            tokens=tokens,
            finish=["length" if cut else "stop"],
            refused=refused,
            rating=-1 if bad else 1,
            won=won,
        )
        for tokens, (failed, cut, refused, bad, won) in zip(
            (rng.geometric(0.1, n) - 1).tolist(), draws.tolist(), strict=True
        )
    ]


def test_a_canary_as_good_as_the_stable_version_is_rarely_taken_back() -> None:
    """200 runs of 300 samples, looked at after each, every margin 0 so that only the test decides, alpha 5%:
    10 false alarms are the bound; 21 is 3.5 standard deviations of 200 draws above it."""
    rules = CanaryRules(
        alpha=0.05, errors=0, empty=0, cut=0, refusals=0, disliked=0, lost=0, length=1.0, errors_at_all=0.1
    )
    rng = np.random.default_rng(2)
    alarms = sum(fed(CanaryGate(rules), noisy(rng, 300), noisy(rng, 300)) is not None for _ in range(200))
    assert alarms <= 21


def test_naive_looking_would_not_do() -> None:
    """The same test at a fixed 5% after each sample, for one measure, errs far more often than 5%: what the
    gate's levels are for."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(60):
        new, old = np.cumsum(rng.random((2, 1000)) < 0.3, axis=1)
        n = np.arange(1, 1001)
        p = stats.hypergeom.sf(new - 1, 2 * n, new + old, n)
        alarms += bool((p[19:] <= 0.05).any())
    assert alarms >= 9  # 15%, three times as often


def test_the_levels_of_all_looks_add_up_to_alpha() -> None:
    """1 / (1 * 2) + 1 / (2 * 3) + ... telescopes to 1 - 1 / (k + 1)."""
    assert sum(1 / (k * (k + 1)) for k in range(1, 1000)) == pytest.approx(1 - 1 / 1000)
    assert GROWTH > 1


def test_a_significant_difference_that_does_not_matter_is_tolerated() -> None:
    rules = CanaryRules(errors=0.05, errors_at_all=None)
    canary = [fine(status=500 if i % 25 == 0 else 200) for i in range(4000)]

    assert fed(CanaryGate(rules), canary, [fine()] * 4000) is None
    assert fed(CanaryGate(CanaryRules(errors=0.01)), canary, [fine()] * 4000) is not None


def test_without_traffic_beside_it_a_canary_is_held_to_the_absolute_limit() -> None:
    gate = CanaryGate(CanaryRules())
    for _ in range(20):
        gate.add("canary", fine(status=500))
    assert (gate.verdict() or "").startswith("rollback: errors at all: 20 of 20, at most 20%")

    quiet = CanaryGate(CanaryRules())
    for _ in range(500):
        quiet.add("canary", fine(tokens=0))
    assert quiet.verdict() is None  # there is nothing to compare with


def test_a_verdict_stays() -> None:
    gate = CanaryGate(CanaryRules())
    assert fed(gate, [fine(status=500)] * 20, [fine()] * 20) == 20
    first = gate.verdict()
    for _ in range(500):
        gate.add("canary", fine())
    assert gate.verdict() == first


@pytest.mark.parametrize("measure", BROKEN)
def test_a_measure_that_is_switched_off_is_not_judged(measure: str) -> None:
    off: dict[str, Any] = {measure: None}
    if measure == "errors":
        off["errors_at_all"] = None
    if measure == "empty":
        off["length"] = None  # nothing is shorter than anything
    gate = CanaryGate(CanaryRules(**off))

    assert fed(gate, [BROKEN[measure]] * 60, [GOOD.get(measure, fine())] * 60) is None


def test_refused_requests_and_failures_say_nothing_of_answers() -> None:
    gate = CanaryGate(CanaryRules(errors=None, errors_at_all=None))
    bad = [{"status": 400, "tokens": 0, "finish": []}, {"status": 500, "tokens": 0, "finish": []}]

    assert fed(gate, bad * 50, [fine()] * 100) is None


def test_missing_measurements_are_not_counted() -> None:
    gate = CanaryGate(CanaryRules())
    assert fed(gate, [{"status": 200, "tokens": None}] * 100, [fine()] * 100) is None


def test_a_slot_that_there_is_not_is_refused() -> None:
    with pytest.raises(KeyError):
        CanaryGate(CanaryRules()).add("blue", fine())


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30), st.lists(st.integers(0, 5), min_size=2, max_size=30)
)
def test_the_rank_sum_agrees_with_scipy(first: list[int], second: list[int]) -> None:
    if len({*first, *second}) == 1:
        assert rank_sum(Counter(first), Counter(second)) == 1.0
        return
    expected = stats.mannwhitneyu(first, second, method="asymptotic", use_continuity=False).pvalue
    assert rank_sum(Counter(first), Counter(second)) == pytest.approx(expected)
