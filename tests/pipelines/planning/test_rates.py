"""Rates from a run's folder, from a file and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.journal import Journal
from pipelines.planning.rates import Rates, amended, finished, from_file, measured
from pipelines.settings_errors import SettingsError


def sums(crowds: list[float], latency_s: float, sample_s: float) -> dict[str, float]:
    """What a gate tells of requests that kept such company, each as long as the model says."""
    seconds = [latency_s + (crowd - 1) * sample_s for crowd in crowds]
    return {
        "requests": len(crowds),
        "crowd": sum(crowds),
        "seconds": sum(seconds),
        "crowd_crowd": sum(c * c for c in crowds),
        "crowd_seconds": sum(c * s for c, s in zip(crowds, seconds, strict=True)),
        "seconds_seconds": sum(s * s for s in seconds),
        "busy_s": 10.0,
    }


def write_run(run_dir: Path, crowds: list[float], steps: int = 6, groups: int = 4) -> None:
    """Steps of 2 s: 0.5 s of waiting, 1 s on 2 ranks, 0.2 s of publishing, 0.3 s of the rest.

    Of `steps * groups + 6` finished groups 6 are ties. Each version is proved 0.75 s after it is out; the
    gate is closed for the last 0.25 s.
    """
    events, metrics = run_dir / "events.jsonl", Journal(run_dir / "metrics.jsonl")
    lines: list[dict[str, Any]] = [{"event": "learner", "at": 100.0, "attempt": 1, "ranks": 2}]
    nothing: dict[str, Any] = {"0": sums([7.0, 3.0], 50.0, 9.0)}  # the evaluation came before
    lines.append({"event": "busy", "generators": nothing, "scorers": {"0": {"cpu_s": 5.0}}, "finished": 0})
    for step in range(1, steps + 1):
        at = 2.0 * step
        told = {"at": 100 + at, "time_s": at, "step": step}
        lines.append({"event": "seal", **told, "groups": [f"{step}-{i}" for i in range(groups)]})
        seconds = {"rollout/sample": 40.0, "rollout/prompt": 2.0, "rollout/score": 1.0}
        lines.append({"event": "stage_seconds", **told, "seconds": seconds, "delivered": 5})
        lines.append({"event": "drop", **told, "reason": "tie", "group": f"t{step}"})
        lines.append({"event": "published", **told, "version": step})
        lines.append({"event": "proof", "at": 100.75 + at, "version": step, "holds": True, "seconds": 0.25})
        shares = {"seconds/wait": 0.5, "seconds/forward_backward": 1.0, "seconds/publish": 0.2}
        metrics.append({"step": step, "attempt": 1, "time_s": at, **shares})
    lines.append({"event": "drop", "at": 200.0, "time_s": 100.0, "reason": "end_of_run", "group": "e"})
    more = sums(crowds, 2.0, 0.5)
    grown = {"0": {name: value + nothing["0"][name] for name, value in more.items()}}
    done = steps * groups + 6
    lines.append({"event": "busy", "generators": grown, "scorers": {"0": {"cpu_s": 8.0}}, "finished": done})
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_tells_its_rates(tmp_path: Path) -> None:
    """30 finished groups of one request each, in company of 1 to 5; see `write_run` for the numbers."""
    write_run(tmp_path, crowds=[1.0, 2.0, 3.0, 4.0, 5.0] * 6)
    told = measured(tmp_path)
    expected = {
        "sample_s": 0.5,
        "latency_s": 2.0,
        "score_s": 0.1,  # 3 s of a core for 30 groups
        "delay_s": 0.5,  # (2 + 1) / 5 outside of generators, less the scorer's work
        "step_fixed_s": 0.3,
        "step_work_s": 2.0,
        "publish_s": 0.2,
        "transfer_s": 0.5,
        "adopt_s": 0.25,
        "kept": 0.8,  # 24 of 24 + 6; the end of the run does not count
        "spread": 0.0,
        "group_mib": 0.0,
    }
    assert told.rates.to_json() == pytest.approx(expected, abs=1e-6)
    assert told.notes == ()


def test_a_group_of_two_requests_takes_twice_as_long(tmp_path: Path) -> None:
    write_run(tmp_path, crowds=[1.0, 2.0, 3.0, 4.0, 5.0] * 12)
    rates = measured(tmp_path).rates
    assert (rates.sample_s, rates.latency_s) == pytest.approx((1.0, 4.0))


def test_one_load_alone_is_taken_for_a_full_generator_and_said(tmp_path: Path) -> None:
    """Company of 4 always, 3.5 s each: 3.5 / 4 s per group whatever the company, and a note."""
    write_run(tmp_path, crowds=[4.0] * 30)
    told = measured(tmp_path)
    assert (told.rates.sample_s, told.rates.latency_s) == pytest.approx((0.875, 0.875))
    assert "guess" in told.notes[0]


def test_a_run_that_is_too_short_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, crowds=[1.0, 2.0], steps=3)
    with pytest.raises(SettingsError, match="at least 4 steps"):
        measured(tmp_path)


def test_only_groups_that_were_generated_are_finished() -> None:
    dropped = {"tie": 3, "stale": 2, "end_of_run": 7}
    counts = {"trained": 10, "sealed": 4, "buffered": 1, "leased": 5, "dropped": dropped}
    assert finished({"counts": counts}) == 20
    assert finished({}) == 0


def test_rates_from_a_file_and_single_ones_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text('{"sample_s": 0.5, "latency_s": 2}')
    assert from_file(file) == Rates(sample_s=0.5, latency_s=2)
    file.write_text(json.dumps({"rates": Rates(sample_s=0.5, latency_s=2, kept=0.5).to_json(), "best": {}}))
    assert amended(from_file(file), {"kept": 0.25}, "by hand").kept == 0.25


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "JSON file"),
        ("[1]", "JSON object"),
        ('{"sample_s": 1}', "at least sample_s and latency_s"),
        ('{"sample_s": 1, "latency_s": 1, "speed": 1}', "unknown rate 'speed'"),
        ('{"sample_s": 1, "latency_s": 0}', "latency_s is above 0"),
        ('{"sample_s": "1", "latency_s": 1}', "sample_s is a number"),
        ('{"sample_s": 1, "latency_s": 1, "kept": 0}', "kept is a share"),
    ],
)
def test_what_is_no_rate_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        from_file(file)
