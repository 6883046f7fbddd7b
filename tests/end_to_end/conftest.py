"""Runs of the real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 420


@dataclass(frozen=True)
class Finished:
    """A run's folder once its command has ended with status 0."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def trained(self) -> list[dict[str, Any]]:
        files = sorted((self.folder / "comparisons").glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture(scope="session")
def align() -> Callable[..., Finished]:
    """Runs `plumbline align` with these arguments; one that does not end well fails with its last output."""

    def run(folder: Path, *arguments: str | Path) -> Finished:
        command = [sys.executable, "-m", "pipelines.cli", "align", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=DEADLINE_S
                )
            except subprocess.TimeoutExpired:
                pytest.fail(f"no end within {DEADLINE_S} s:\n{log.read_text()[-4000:]}")
        if done.returncode != 0:
            pytest.fail(f"status {done.returncode}:\n{log.read_text()[-4000:]}")
        return Finished(folder)

    return run
