"""The simulated flow: goldens by hand, conservation, bounds of lag and throughput."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.planning.rates import Rates
from pipelines.planning.simulation import Setup, simulate

SECONDS = st.floats(0.0, 2.0)
POSITIVE = st.floats(0.05, 2.0)


@st.composite
def rates(draw: st.DrawFn, spread: float | None = None, kept: float | None = None) -> Rates:
    return Rates(
        sample_s=draw(SECONDS),
        latency_s=draw(POSITIVE),
        score_s=draw(SECONDS),
        delay_s=draw(SECONDS),
        step_fixed_s=draw(POSITIVE),
        step_work_s=draw(SECONDS),
        publish_s=draw(SECONDS),
        transfer_s=draw(SECONDS),
        adopt_s=draw(SECONDS),
        kept=draw(st.floats(0.3, 1.0)) if kept is None else kept,
        spread=draw(st.floats(0.0, 1.5)) if spread is None else spread,
    )


SETUPS = st.builds(
    Setup,
    generators=st.integers(1, 6),
    scorers=st.integers(1, 4),
    ranks=st.integers(1, 4),
    groups_per_step=st.integers(1, 8),
    sync_every=st.integers(1, 3),
    max_lag=st.integers(0, 3),
    in_flight=st.integers(1, 8),
)
STEPS = st.integers(1, 12)
SEEDS = st.integers(0, 99)


def test_on_policy_by_hand() -> None:
    """One generator, no lag, 4 groups a step, all alike.

    The 4 groups enter together: 1 + 3 * 0.5 = 2.5 s. They are scored one after the other, 0.1 s each, so the
    last is there 0.4 s later. The step takes 0.5 + 1 / 2 = 1 s and publishing 0.2 s; the version travels for
    0.1 s and closes the gate for 0.3 s. Only then are the next 4 admitted: a period of 4.5 s, of which the
    learner works 1.2 s and the generator 2.5 s. Eight periods without the last sync: 8 * 4.5 - 0.4 = 35.6 s.
    """
    known = Rates(
        sample_s=0.5,
        latency_s=1.0,
        score_s=0.1,
        step_fixed_s=0.5,
        step_work_s=1.0,
        publish_s=0.2,
        transfer_s=0.1,
        adopt_s=0.3,
        spread=0.0,
    )
    out = simulate(known, Setup(generators=1, ranks=2, groups_per_step=4, max_lag=0), steps=8)
    assert out.seconds == pytest.approx(35.6)
    assert out.groups_per_s == pytest.approx(4 / 4.5)
    assert out.steps_per_hour == pytest.approx(800)
    assert out.learner_waits == pytest.approx(3.3 / 4.5)
    assert out.generators_busy == pytest.approx(2.5 / 4.5)
    assert out.scorers_busy == pytest.approx(0.4 / 4.5)
    assert (out.lag_max, out.stale_share, out.issued, out.trained) == (0, 0.0, 32, 32)


def test_a_slow_learner_by_hand() -> None:
    """One group a step, generators far faster than the learner: 3 s a step, and it never waits again.

    The first group is there after 1 + 0.5 = 1.5 s with its companion (lag 1 admits two groups at version 0),
    and from then on one is always buffered: 1.5 + 6 * 3 = 19.5 s. Step 1 trains on version 0 when version 0
    is the newest, and every later one on the version before: lags 0, 1, 1, 1, 1, 1.
    """
    known = Rates(sample_s=0.5, latency_s=1.0, step_fixed_s=3.0, spread=0.0)
    out = simulate(known, Setup(generators=1, groups_per_step=1, max_lag=1), steps=6)
    assert out.seconds == pytest.approx(19.5)
    assert out.learner_waits == 0.0
    assert out.groups_per_s == pytest.approx(1 / 3)
    assert out.lag_mean == pytest.approx(5 / 6)
    assert out.lag_max == 1


def test_versions_are_adopted_in_their_order_behind_a_closed_gate() -> None:
    """Lag 1, one group a step. Groups 1 and 2 share the generator: 5 + 5 = 10 s for both.

    Step 1 takes until 11; version 1 closes the gate until 13. Step 2 takes from 11 to 12, so version 2 is out
    by then and closes the gate until 15. Group 3, which version 1 admits, waits there, is ready at 20 and
    trained at 21.
    """
    known = Rates(sample_s=5.0, latency_s=5.0, step_fixed_s=1.0, adopt_s=2.0, spread=0.0)
    out = simulate(known, Setup(generators=1, groups_per_step=1, max_lag=1), steps=3)
    assert out.seconds == pytest.approx(21.0)


def test_a_generator_drains_before_it_takes_a_version_over() -> None:
    """Lag 1, two groups a step, one lease at a time, 1 s a step, the gate closed for 2 s.

    Groups 1 to 4 are admitted at version 0 and come at 2, 4, 6, 8. Step 1 takes from 4 to 5, when version 1
    is out; group 3 is inside until 6, so the gate is closed from 6 to 8. Groups 4 and 5 come at 10 and 12,
    step 2 takes from 10 to 11, and the gate closes at 12 for version 2, until 14: group 6 comes at 16.
    """
    known = Rates(sample_s=2.0, latency_s=2.0, step_fixed_s=1.0, adopt_s=2.0, spread=0.0)
    setup = Setup(generators=1, groups_per_step=2, max_lag=1, in_flight=1)
    out = simulate(known, setup, steps=3)
    assert out.seconds == pytest.approx(17.0)
    assert out.groups_inside <= 1


@settings(deadline=None, max_examples=150)
@given(rates(), SETUPS, STEPS, SEEDS)
def test_every_group_is_in_one_place_and_none_too_old(
    known: Rates, setup: Setup, steps: int, seed: int
) -> None:
    out = simulate(known, setup, steps=steps, seed=seed)
    assert out.issued == out.trained + out.leased + out.buffered + sum(out.dropped.values())
    assert out.trained == steps * setup.groups_per_step
    assert 0 <= out.lag_mean <= out.lag_max <= setup.max_lag
    shares = (out.learner_waits, out.generators_busy, out.scorers_busy, out.stale_share)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares)
    assert out.leased_max <= setup.generators * setup.in_flight
    assert out.groups_inside <= setup.in_flight


@settings(deadline=None, max_examples=150)
@given(rates(spread=0.0), SETUPS, STEPS, SEEDS)
def test_nothing_is_faster_than_its_slowest_part(known: Rates, setup: Setup, steps: int, seed: int) -> None:
    """Generators that are always full, scorers that always work, a learner that never waits."""
    out = simulate(known, setup, steps=steps, seed=seed)
    finished = out.trained + sum(out.dropped.values())
    most = setup.generators * max(known.groups_per_s(n) for n in range(1, setup.in_flight + 1))
    assert finished / out.seconds <= most * (1 + 1e-6)
    assert finished * known.score_s <= setup.scorers * out.seconds * (1 + 1e-6)
    versions = sum(setup.admission(steps).publishes(step) for step in range(1, steps + 1))
    assert out.seconds >= (steps * known.step_s(setup.ranks) + versions * known.publish_s) * (1 - 1e-6)


@settings(deadline=None, max_examples=60)
@given(rates(), SETUPS, SEEDS)
def test_more_generators_do_not_slow_a_run_down(known: Rates, setup: Setup, seed: int) -> None:
    """Up to noise: groups come in another order, a step may close a little later, more may be stale."""
    few = simulate(known, replace(setup, in_flight=64), steps=30, seed=seed)
    many = simulate(known, replace(setup, in_flight=64, generators=2 * setup.generators), steps=30, seed=seed)
    assert many.seconds <= few.seconds * 1.15 + known.latency_s


@settings(deadline=None, max_examples=20)
@given(rates(), SETUPS, SEEDS)
def test_the_same_seed_plays_the_same_run(known: Rates, setup: Setup, seed: int) -> None:
    assert simulate(known, setup, steps=5, seed=seed) == simulate(known, setup, steps=5, seed=seed)


def test_bytes_of_the_buffer_are_told_where_a_group_is_known() -> None:
    known = Rates(sample_s=0.1, latency_s=1.0, step_fixed_s=1.0, group_mib=2.0)
    out = simulate(known, Setup(generators=2, groups_per_step=4), steps=5)
    assert out.buffer_mib == 2.0 * out.buffered_max
    unknown = replace(known, group_mib=0.0)
    assert simulate(unknown, Setup(generators=2, groups_per_step=4), steps=5).buffer_mib is None


@pytest.mark.parametrize("wrong", [{"generators": 0}, {"max_lag": -1}, {"groups_per_step": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Setup(**{"generators": 1, "groups_per_step": 1, **wrong})
