"""The size that a pool should have: its bounds, convergence, and no swinging on a model of a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scaling import (
    GROW_S,
    SHRINK_S,
    Bounds,
    Scaler,
    Signals,
    Sizes,
    follower,
    needed,
)
from pipelines.settings import RolloutSettings

SHARE = st.floats(0, 1)


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    low = draw(st.integers(1, 20))
    start = low + draw(st.integers(0, 20))
    return Bounds(low=low, start=start, high=start + draw(st.integers(0, 60)))


def signals(waits: float = 0.0, held: float = 0.0) -> Signals:
    return Signals(learner_waits=waits, held_back=held)


def of_a_run(size: int, need: float) -> Signals:
    """What a pool of `size` shows when `need` generators would just keep the learner busy."""
    return signals(waits=max(0.0, 1 - size / need), held=max(0.0, 1 - need / size))


@given(size=st.integers(1, 100), limits=bounds(), waits=SHARE, held=SHARE)
def test_no_signal_leads_out_of_the_bounds(size: int, limits: Bounds, waits: float, held: float) -> None:
    assert limits.low <= needed(size, signals(waits, held), limits) <= limits.most


@given(size=st.integers(1, 80), limits=bounds(), waits=SHARE, held=SHARE)
def test_constant_signals_converge_in_one_direction(
    size: int, limits: Bounds, waits: float, held: float
) -> None:
    sizes = [limits.clamp(size)]
    for _ in range(200):
        sizes.append(needed(sizes[-1], signals(waits, held), limits))
    assert sizes[-1] == sizes[-2]
    steps = [after - before for before, after in pairwise(sizes)]
    assert not (min(steps) < 0 < max(steps))


@given(start=st.integers(1, 80), need=st.floats(0.1, 90), limits=bounds())
def test_steady_demand_never_makes_the_pool_swing(start: int, need: float, limits: Bounds) -> None:
    size = limits.clamp(start)
    steps: list[int] = []
    for _ in range(120):
        wanted = needed(size, of_a_run(size, need), limits)
        steps.append(wanted - size)
        size = wanted
    assert steps[-1] == 0
    grown = max(steps) > 0
    assert not (grown and min(steps) < 0), "it grew and shrank"
    # It settles where the learner waits for little, unless the bounds forbid it.
    assert size == limits.most or 1 - size / need < 0.15


@pytest.mark.parametrize(
    ("size", "waits", "held", "wanted"),
    [
        (2, 0.5, 0.0, 4),  # need = 2 / 0.5
        (2, 0.9, 0.0, 4),  # need 20, but at most twofold
        (4, 0.2, 0.0, 5),  # need = 4 / 0.8
        (4, 1.0, 0.0, 8),
        (4, 0.1, 0.0, 4),  # too little to act on
        (4, 0.5, 0.5, 4),  # held back while the learner waits: a weight sync, not a lack of generators
        (4, 0.0, 0.4, 3),  # need 2.4 fits into 85 % of 3
        (4, 0.0, 0.3, 4),  # need 2.8 does not
        (1, 0.0, 1.0, 1),
    ],
)
def test_known_cases(size: int, waits: float, held: float, wanted: int) -> None:
    assert needed(size, signals(waits, held), Bounds(low=1, start=1, high=100)) == wanted


def test_a_change_gets_time_to_show_its_effect() -> None:
    scaler, lack = Scaler(Bounds(low=1, start=2, high=8)), signals(waits=0.5)
    assert {scaler.wanted(2, lack, float(now)) for now in range(int(GROW_S))} == {2}
    assert scaler.wanted(2, lack, GROW_S) == 4
    scaler.changed(GROW_S)
    assert scaler.wanted(4, lack, GROW_S + 1) == 4
    assert scaler.wanted(4, lack, 2 * GROW_S) == 8


def test_shrinking_waits_longer_and_one_quiet_moment_is_not_enough() -> None:
    scaler, idle = Scaler(Bounds(low=1, start=4, high=8)), signals(held=0.9)
    assert {scaler.wanted(4, idle, float(now)) for now in range(int(SHRINK_S))} == {4}
    assert scaler.wanted(4, idle, SHRINK_S) == 3

    busy = Scaler(Bounds(low=1, start=4, high=8))
    assert {busy.wanted(4, signals(), float(now)) for now in range(int(SHRINK_S))} == {4}
    assert busy.wanted(4, idle, SHRINK_S) == 4  # the average of the last half minute counts


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=60), bounds(), st.integers(1, 90))
def test_over_time_it_stays_within_the_bounds(
    moments: list[tuple[float, float]], limits: Bounds, size: int
) -> None:
    scaler = Scaler(limits)
    for index, moment in enumerate(moments):
        size = scaler.wanted(size, signals(*moment), 10.0 * index)
        assert limits.low <= size <= limits.most


@given(limits=bounds(), of=bounds(), generators=st.integers(1, 100))
def test_scorers_keep_their_proportion_to_generators(limits: Bounds, of: Bounds, generators: int) -> None:
    assert follower(limits, of.start, of) == limits.start
    wanted = follower(limits, generators, of)
    assert wanted == max(limits.low, min(limits.most, math.ceil(limits.start * generators / of.start - 1e-9)))


def test_sizes_of_settings() -> None:
    plain = Sizes.of(RolloutSettings(generators=3, scorers=2, standbys=1))
    assert plain.generator == Bounds(low=3, start=3) and plain.generator.most == 3 and plain.standbys == 1
    assert plain.scorer == plain.role("scorer") == Bounds(low=2, start=2)
    elastic = Sizes.of(RolloutSettings(generators=3, min_generators=1, max_generators=9, max_scorers=4))
    assert elastic.generator == Bounds(low=1, start=3, high=9)
    assert elastic.scorer == Bounds(low=1, start=1, high=4)


@pytest.mark.parametrize(("low", "start", "high"), [(0, 1, 2), (2, 1, 2), (1, 3, 2)])
def test_bounds_that_make_no_sense_are_refused(low: int, start: int, high: int) -> None:
    with pytest.raises(ValueError, match="1 <= low <= start <= high"):
        Bounds(low=low, start=start, high=high)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_signals_are_shares(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        signals(waits=wrong)
    with pytest.raises(ValueError, match="between 0 and 1"):
        signals(held=wrong)
