"""The summary of small journals, worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines import summary


def proof(
    version: int, generator: int = 0, canary: str = "proved", elements: str = "proved"
) -> dict[str, Any]:
    parts = {"bytes_received": "proved", "elements_loaded": elements, "canary_change": canary}
    holds = elements != "failed"
    names = {"event": "proof", "version": version, "generator": f"generator-{generator}"}
    return {**names, **parts, "caches_fresh": "proved", "seconds": 0.125, "holds": holds}


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_version_counts_once_and_only_if_every_generator_proved_it() -> None:
    """Versions 0, 1, 2 on two generators; generator 1 fails version 2, and version 0 has no change to see.

    So 3 versions, of which 0 and 1 are verified and 2 failed; 6 proofs of 0.125 s are 0.75 s.
    """
    proofs = [
        proof(v, g, canary="not_distinguishable" if v == 0 else "proved") for v in (0, 1) for g in (0, 1)
    ]
    proofs += [proof(2, 0), proof(2, 1, elements="failed")]

    assert summary.sync([{"event": "seal"}, *proofs]) == {
        "versions": 3,
        "verified": 2,
        "failed": 1,
        "seconds": 0.75,
        "parts": {
            "bytes_received": {"proved": 6},
            "elements_loaded": {"proved": 5, "failed": 1},
            "canary_change": {"not_distinguishable": 2, "proved": 4},
            "caches_fresh": {"proved": 6},
        },
    }


def test_seconds_of_stages_workers_and_learner_add_up() -> None:
    """rollout/sample 1.5 + 2.25 from two steps; the driver's stage as it is; the learner's phases by name."""
    events = [
        {"event": "stage_seconds", "step": 1, "seconds": {"rollout/sample": 1.5}},
        {"event": "drop", "seconds": {"rollout/sample": 100.0}},
        {"event": "stage_seconds", "step": 2, "seconds": {"rollout/sample": 2.25, "rollout/score": 0.5}},
        {"event": "stage_seconds", "seconds": {"align": 12.0}},
    ]
    steps = [{"step": 1, "seconds/forward": 0.25}, {"step": 2, "seconds/forward": 0.5, "loss": 3.0}]

    assert summary.stage_seconds(events, steps) == {
        "align": 12.0,
        "learner/forward": 0.75,
        "rollout/sample": 3.75,
        "rollout/score": 0.5,
    }


def test_reliance_is_the_mean_of_the_last_ten_steps_that_measured_it() -> None:
    """Steps 1 to 12 measure 1 to 12, step 13 has no media: the mean of 3 to 12 is 7.5."""
    steps = [{"visual_reliance": float(n), "digest_mismatches": 0} for n in range(1, 13)]

    assert summary.sight([*steps, {"visual_reliance": None}]) == {
        "digest_mismatches": 0,
        "visual_reliance": 7.5,
    }
    assert summary.sight([{"step": 1}]) == {"digest_mismatches": 0, "visual_reliance": None}


def test_the_lag_is_the_largest_and_the_mean_over_steps() -> None:
    steps = [
        {"lag_max": 1, "lag_mean": 0.5},
        {"lag_max": 0, "lag_mean": 0.0},
        {"lag_max": 2, "lag_mean": 1.0},
    ]

    assert summary.lag(steps) == {"max": 2.0, "mean": 0.5}
    assert summary.lag([]) == {"max": 0.0, "mean": 0.0}


def captions(wrong: Iterable[int]) -> list[dict[str, Any]]:
    counts = {"right": 1, "missed": 0, "malformed": 0}
    return [
        {"id": str(i), "kind": "caption", "text": "a red one", "wrong": w, **counts}
        for i, w in enumerate(wrong)
    ]


def test_a_summary_is_written_from_what_lies_in_the_folder(tmp_path: Path) -> None:
    """Step 2 stands twice, since a resumed attempt trained it again: 3 lines, 2 steps.

    chair_i = wrong / (right + wrong): 2 / 4 before, 0 / 2 after.
    """
    write(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}, {"step": 2}])
    alarms = [{"event": "alarm", "monitor": name} for name in ("ties", "ties", "reward_drop")]
    write(tmp_path / "events.jsonl", [proof(0), *alarms])
    write(tmp_path / "evaluation" / "before.jsonl", captions([1, 1]))
    write(tmp_path / "evaluation" / "after.jsonl", captions([0, 0]))

    made = summary.summarise(
        tmp_path, status="finished", seed=7, comparisons={"issued": 3, "trained": 3}, wall_seconds=12.345
    )

    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(made))
    assert (made["status"], made["steps"], made["seed"], made["wall_seconds"]) == ("finished", 2, 7, 12.3)
    assert made["comparisons"] == {"issued": 3, "trained": 3}
    assert made["alarms"] == {"ties": 2, "reward_drop": 1}
    assert made["heldout"]["before"]["chair_i"] == pytest.approx(0.5)
    assert made["heldout"]["change"]["chair_i"]["difference"] == pytest.approx(-0.5)
    assert "torch" in made["versions"]


def test_a_run_that_failed_at_once_has_a_summary_as_well(tmp_path: Path) -> None:
    made = summary.summarise(
        tmp_path, status="failed: RunFailed: no", seed=0, comparisons={}, wall_seconds=1.0
    )

    assert made["heldout"] == {} and made["steps"] == 0 and made["sync"]["versions"] == 0
