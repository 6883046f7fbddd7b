"""The benchmark of deterministic runs, in small: kills, resumes, and what it takes to notice a difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.determinism import differences

ROOT = Path(__file__).parents[2]
FORKED, STARTED = 3, 1
DEADLINE_S = 300


@pytest.fixture(scope="module")
def kills(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """Of two recipes: all weights, and an adapter with replay and a survey."""
    folder = tmp_path_factory.mktemp("determinism")
    command = [sys.executable, "-m", "benchmarks.determinism", "--arms", "plain", "replay"]
    command += ["--forked", str(FORKED), "--started", str(STARTED)]
    command += ["--output", str(folder / "runs"), "--json", str(folder / "kills.json")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_S,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs", json.loads((folder / "kills.json").read_text())


def test_resumed_runs_equal_the_uninterrupted_one(kills):
    _, found = kills
    assert [kill["how"] for kill in found] == ["forked"] * FORKED + ["started"] * STARTED
    assert {kill["arm"] for kill in found} == {"plain", "replay"}
    assert all(kill["equal"] for kill in found)


def test_runs_that_differ_are_told_apart(kills):
    """Another recipe shares nothing but the number of its steps."""
    folder, _ = kills
    named = "; ".join(differences(folder / "plain", folder / "replay"))
    for part in ("weights", "optimizer", "ledger", "model.safetensors", "comparisons/"):
        assert part in named
