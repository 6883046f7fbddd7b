"""Reads a run directory as far as it is there. What cannot be read becomes a note, not an error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipelines.evaluation import Record, compare, read_records
from pipelines.journal import read_lines

Change = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory in memory, without its comparisons and pictures."""

    path: Path
    config: str  # config.yaml as it is
    metrics: Sequence[Mapping[str, Any]]  # one per learner step of the final lineage, by step
    events: Sequence[Mapping[str, Any]]  # in the order they were written
    summary: Mapping[str, Any] | None
    change: Change  # held-out measures before and after; empty when the run was not evaluated twice
    why_no_change: str
    items: Mapping[str, int]  # held-out items by kind, e.g. {"caption": 1000, "random": 1000}
    notes: Sequence[str]  # what could not be read

    @property
    def status(self) -> str:
        """ "finished", "interrupted", "failed: ..." as the summary says; "unfinished" without a summary."""
        return "unfinished" if self.summary is None else str(self.summary.get("status", "finished"))


def load(run_dir: Path) -> Run:
    """Raises FileNotFoundError when the directory holds nothing of a run."""
    known = ("config.yaml", "metrics.jsonl", "events.jsonl", "summary.json")
    if not any((run_dir / name).exists() for name in known):
        raise FileNotFoundError(
            f"{run_dir}: no run lies here (expected one of {', '.join(known)}); "
            "give the folder that `plumbline align` wrote, e.g. runs/glyphs"
        )
    notes: list[str] = []
    config = run_dir / "config.yaml"
    metrics = _lines(run_dir / "metrics.jsonl", notes)
    change, why, items = _change(run_dir)
    return Run(
        path=run_dir,
        config=config.read_text(encoding="utf-8", errors="replace") if config.exists() else "",
        metrics=final_lineage(metrics),
        events=_lines(run_dir / "events.jsonl", notes),
        summary=_summary(run_dir / "summary.json", notes),
        change=change,
        why_no_change=why,
        items=items,
        notes=notes,
    )


def final_lineage(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One line per step, by step: after a resume a step is written again, and the last line counts."""
    newest = {int(line["step"]): line for line in metrics if "step" in line}
    return [newest[step] for step in sorted(newest)]


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    try:
        for line in read_lines(path):
            lines.append(line)
    except ValueError as error:
        notes.append(f"{error}; the rest of this file is left out")
    return lines


def _summary(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path}: not JSON ({error})")
        return None
    return cast("dict[str, Any]", summary) if isinstance(summary, dict) else None


def _change(run_dir: Path) -> tuple[Change, str, Mapping[str, int]]:
    """The paired change, recomputed from the records, or why there is none; items by kind."""
    sides: list[list[Record]] = []
    for when in ("before", "after"):
        path = run_dir / "evaluation" / f"{when}.jsonl"
        if not path.exists():
            return {}, f"there is no evaluation/{when}.jsonl", {}
        try:
            sides.append([*read_records(path)])
        except ValueError as error:
            return {}, str(error), {}
    if not any(sides):
        return {}, "the evaluation files hold no items", {}
    try:
        change = compare(sides[0], sides[1])
    except ValueError as error:
        return {}, str(error), {}
    return change, "", Counter(str(record["kind"]) for record in sides[0])
