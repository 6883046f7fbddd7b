"""Which fleet is advised, and what the command says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines import marked_yaml
from pipelines.cli import app
from pipelines.planning.advice import Bounds, _first, advise
from pipelines.planning.rates import Rates
from pipelines.planning.simulation import Setup
from pipelines.settings import Settings
from pipelines.settings_errors import SettingsError

# A generator makes 1 group per second whatever its company, the learner takes 8 in 2 s: 4 keep it busy.
EVEN = Rates(sample_s=1.0, latency_s=1.0, step_fixed_s=2.0, spread=0.0)
WANTED = Setup(generators=1, groups_per_step=8)


def plumbline(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_the_smallest_fleet_that_keeps_the_learner_busy() -> None:
    """4 generators make 8 groups in the 2 s of a step; without lag they only begin when it is over."""
    advice = advise(EVEN, WANTED, Bounds(max_lag=1))
    on_policy, late = advice.candidates
    assert (late.setup.generators, late.reached, late.bottleneck) == (4, True, "learner")
    assert (on_policy.reached, on_policy.setup.max_lag) == (False, 0)
    assert advice.best is late
    assert late.settings()["sync"] == {"every": 1, "max_lag": 1}


def test_without_lag_only_lag_helps() -> None:
    """8 generators make the 8 groups at once, in 1 s; however many there are, the learner waits for this."""
    [only] = advise(EVEN, WANTED, Bounds(max_lag=0)).candidates
    assert (only.setup.generators, only.bottleneck) == (8, "lag")
    assert only.outcome.learner_waits == pytest.approx(1 / 3)


def test_too_few_generators_are_named() -> None:
    [_, late] = advise(EVEN, WANTED, Bounds(max_lag=1, generators=2)).candidates
    assert (late.setup.generators, late.reached, late.bottleneck) == (2, False, "generators")


def test_scorers_are_sized_by_their_work_and_named_when_short() -> None:
    slow = Rates(sample_s=1.0, latency_s=1.0, score_s=0.5, step_fixed_s=2.0, spread=0.0)
    [enough] = advise(slow, WANTED, Bounds(max_lag=2)).candidates[-1:]
    assert enough.setup.scorers == 3  # 4 groups a second, 0.5 s each, four fifths of their time
    [short] = advise(slow, WANTED, Bounds(max_lag=2, scorers=1)).candidates[-1:]
    assert (short.reached, short.bottleneck) == (False, "scorers")


def test_a_budget_is_shared_between_generators_and_ranks() -> None:
    """2 ranks halve the step: 8 groups in 2 s need the 4 generators that 6 devices leave; 1 rank takes 4 s,
    and 4 ranks leave 2 generators, which take 4 s as well."""
    rates = Rates(sample_s=1.0, latency_s=1.0, step_work_s=4.0, spread=0.0)
    best = advise(rates, WANTED, Bounds(max_lag=1, devices=6)).best
    assert (best.setup.ranks, best.setup.generators) == (2, 4)


def test_a_step_that_takes_no_time_is_refused() -> None:
    with pytest.raises(SettingsError, match="a learner step takes time"):
        advise(Rates(sample_s=1.0, latency_s=1.0), WANTED, Bounds())


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 60))
def test_the_first_number_that_holds_is_found(low: int, more: int, threshold: int) -> None:
    high = low + more
    expected = next((n for n in range(low, high + 1) if n >= threshold), None)
    assert _first(low, high, lambda n: n >= threshold) == expected


def test_the_command_prints_settings_that_a_run_takes(tmp_path: Path) -> None:
    given_rates = [
        "--rate",
        "sample_s=1",
        "--rate",
        "latency_s=1",
        "--rate",
        "step_fixed_s=2",
        "--rate",
        "spread=0",
    ]
    told = plumbline(*given_rates, "--groups", "8", "--lag", "1", "--json", tmp_path / "plan.json")
    assert told.exit_code == 0, told.output
    printed = told.stdout.partition("YAML:\n\n")[2]
    run = Settings.model_validate(marked_yaml.parse(printed, "printed").value)
    assert (run.rollout.generators, run.sync.max_lag, run.learner.groups_per_step) == (4, 1, 8)
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["best"]["setup"]["generators"] == 4 and len(result["candidates"]) == 2
    again = plumbline("--rates", tmp_path / "plan.json", "--groups", "8", "--lag", "1")
    assert again.stdout == told.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "at least sample_s and latency_s"),
        (["--rate", "sample_s"], "NAME=SECONDS"),
        (["--rate", "speed=1"], "unknown rate 'speed'"),
        (["nowhere"], "no such folder"),
        (["--rate", "sample_s=1", "--rate", "latency_s=1", "--ranks", "9", "--groups", "8"], "9 ranks share"),
    ],
)
def test_what_cannot_be_planned_is_one_message(arguments: list[str], complaint: str) -> None:
    told = plumbline(*arguments)
    assert told.exit_code == 2 and complaint in told.stderr
