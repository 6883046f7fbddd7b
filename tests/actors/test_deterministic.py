"""A deterministic run that is asked to stop, and goes on: equal to one that was not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors import deterministic
from actors.fingerprint import KEY, of_run
from actors.preparation import prepare
from pipelines.control import read_status
from pipelines.journal import read_lines
from pipelines.report.progress import Progress
from pipelines.settings import load
from pipelines.status import describe

STEPS = 3
OVERRIDES = (
    "deterministic=true",
    "name=run",
    f"learner.steps={STEPS}",
    "learner.groups_per_step=3",
    "learner.lr=3e-4",
    "checkpoint.every=2",
    "evaluation.scenes=2",
    "evaluation.questions=1",
    "method.samples=3",
)


def align(run_dir: Path, *, resume: bool = False) -> dict[str, Any]:
    settings = load(None, OVERRIDES)
    return deterministic.align(prepare(settings, run_dir, resume=resume), Progress(STEPS))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("deterministic") / "run"
    return run_dir, align(run_dir)


def test_it_leaves_the_folder_of_a_run(uninterrupted):
    run_dir, summary = uninterrupted
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    assert summary["sync"]["verified"] == summary["sync"]["versions"] == STEPS + 1
    assert summary["lag"]["max"] == 0 and set(summary["heldout"]) == {"before", "after", "change"}
    assert "violated" not in {finding["status"] for finding in summary["audit"]["findings"]}
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"
    assert (run_dir / "report.html").exists() and len(list((run_dir / "comparisons").iterdir())) == STEPS
    shown = Console(record=True, width=100)
    for line in describe(read_status(run_dir)):
        shown.print(line)
    assert f"step {STEPS} of {STEPS}" in shown.export_text()
    assert set(of_run(run_dir)) == {"weights", "optimizer", "statistics", "rng", "ledger"}


def test_stopped_by_a_signal_it_goes_on_to_the_same_end(
    uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGTERM in the first step: the step is finished and committed, and no other is begun."""
    step = deterministic.KeptPorts.trained

    def stopped_meanwhile(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(*args)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(deterministic.KeptPorts, "trained", stopped_meanwhile)
        assert align(run_dir)["status"] == "interrupted: SIGTERM"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-1"]
    assert of_run(run_dir) != of_run(uninterrupted[0])
    assert align(run_dir, resume=True)["status"] == "finished"
    assert of_run(run_dir) == of_run(uninterrupted[0])
    [resumed] = [e for e in read_lines(run_dir / "events.jsonl") if e["event"] == "resumed"]
    assert (resumed["attempt"], resumed["step"]) == (2, 1)


def test_a_failure_is_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("the disk is on fire")

    monkeypatch.setattr(deterministic.KeptPorts, "trained", broken)
    with pytest.raises(ValueError, match="on fire"):
        align(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed: ValueError: the disk is on fire"
    assert "on fire" in (tmp_path / "run" / "failure.txt").read_text()


def test_no_checkpoint_no_fingerprint(tmp_path: Path):
    with pytest.raises(ValueError, match=f"no checkpoint has a {KEY}"):
        of_run(tmp_path)
