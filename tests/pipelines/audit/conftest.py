"""A small run folder in which everything agrees, and ways to tamper with it.

Six steps on two ranks with two groups each, three drops; a checkpoint of step 6; two generators whose
processes are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

STEPS, RANKS, GROUPS = 6, 2, 2
Record = dict[str, Any]


def digest(version: int, attempt: int = 1) -> str:
    return hashlib.sha256(f"{attempt}/{version}".encode()).hexdigest()


def write_tensors(file: Path, values: np.ndarray[Any, Any], dtype: str) -> None:
    """A safetensors file with one tensor "w"."""
    entry = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [0, values.nbytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())


class Folder:
    """A run folder; what it holds is read, changed and written back as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, name: str) -> list[Record]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    def write_lines(self, name: str, records: list[Record]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def change(self, name: str, edit: Callable[[list[Record]], Any]) -> None:
        records = self.lines(name)
        edit(records)
        self.write_lines(name, records)

    def add(self, *events: Record) -> None:
        self.change("events.jsonl", lambda records: records.extend(events))

    def counts(self, **counts: Any) -> None:
        self.summary(comparisons=self.read("summary.json")["comparisons"] | counts)

    def summary(self, **changes: Any) -> None:
        known = self.read("summary.json") if (self.path / "summary.json").exists() else {}
        (self.path / "summary.json").write_text(json.dumps(known | changes))

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def rows(self, step: int, rank: int = 0) -> list[Record]:
        return pq.read_table(self._file(step, rank)).to_pylist()

    def write_rows(self, rows: list[Record], step: int, rank: int = 0) -> None:
        self._file(step, rank).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), self._file(step, rank))

    def change_row(self, **values: Any) -> None:
        """The first row of step 3 on rank 0."""
        rows = self.rows(3)
        rows[0] |= values
        self.write_rows(rows, 3)

    def commit(self, step: int, trained: list[tuple[str, int]], dropped: list[tuple[str, str]]) -> None:
        folder = self.path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        write_tensors(folder / "model.safetensors", np.ones((4, 3), np.float32), "F32")
        self.manifest(step, trained, dropped)

    def manifest(self, step: int, trained: list[tuple[str, int]], dropped: list[tuple[str, str]]) -> None:
        """Names what is in the folder now."""
        folder = self.path / "checkpoints" / f"step-{step}"
        files = {
            file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in folder.iterdir()
            if file.name != "manifest.json"
        }
        ledger = {"trained": [[g, s, 0] for g, s in trained], "dropped": [[g, why, 0] for g, why in dropped]}
        manifest: Record = {"step": step, "attempt": 1, "files": files, "ledger": ledger}
        spelled = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        manifest["sha256"] = hashlib.sha256(spelled.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def _file(self, step: int, rank: int) -> Path:
        return self.path / "comparisons" / f"step-{step:05d}-rank-{rank}.parquet"


_WHOLE = ("attempt", "step", "rank", "use", "version_oldest", "version_newest")
_WORDS = ("group", "comparison", "version_digest", "version_spans", "missing_chosen", "missing_rejected")
_REAL = ("score_chosen", "score_rejected", "margin_text", "margin_media")
SCHEMA = pa.schema(
    [(name, pa.int64()) for name in _WHOLE]
    + [(name, pa.string()) for name in (*_WORDS, "parts_chosen", "parts_rejected", "margins")]
    + [(name, pa.float64()) for name in _REAL]
)


def row(step: int, rank: int, number: int, attempt: int = 1, name: str = "g") -> Record:
    group, version = f"{name}{step:02d}{rank}{number}", step - 1
    return {
        "attempt": attempt,
        "step": step,
        "rank": rank,
        "use": 1,
        "group": group,
        "comparison": f"{group}/0",
        "version_oldest": version,
        "version_newest": version,
        "version_digest": digest(version, attempt),
        "score_chosen": 1.0,
        "score_rejected": -0.5,
        "parts_chosen": json.dumps({"right": 1.0}),
        "parts_rejected": json.dumps({"right": 0.0}),
        "margin_text": 0.1,
        "margins": json.dumps({"text": 0.1, "media": None}),
    }


def step_rows(step: int, attempt: int = 1, name: str = "g") -> list[Record]:
    return [row(step, rank, number, attempt, name) for rank in range(RANKS) for number in range(GROUPS)]


def events_of(step: int, attempt: int = 1, name: str = "g") -> list[Record]:
    """Version step - 1 is published and proved, groups are leased, sealed and trained."""
    at = 100.0 * attempt + 10 * step
    names = [r["group"] for r in step_rows(step, attempt, name)]
    version = step - 1
    proof = {
        part: "proved" for part in ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")
    }
    proofs = [{"event": "proof", "version": version, "generator": f"generator-{i}", **proof} for i in (0, 1)]
    published = {"version": version, "attempt": attempt, "step": version, "digest": digest(version, attempt)}
    return [
        {"event": "published", **published},
        *proofs,
        *({"event": "issue", "group": g, "generator": i % 2, "fence": i} for i, g in enumerate(names)),
        {"event": "seal", "step": step, "groups": names},
        {"event": "stage_seconds", "step": step, "seconds": {}, "at": at},
    ]


def metrics_of(step: int, attempt: int = 1) -> Record:
    line = {"step": step, "attempt": attempt, "comparisons": RANKS * GROUPS, "loss": 0.5, "lr": 1e-4}
    return line | {"grad_norm": 1.0, "skipped_steps": 0.0}


def member(index: int, state: str, at: float, why: str = "") -> Record:
    """Of a process that is gone: no process of this machine began 1 tick after boot with this number."""
    seen = {"pid": 2**22 + index, "node": "n", "began": "1", "at": at, "why": why}
    return {"event": "member", "role": "generator", "index": index, "state": state, **seen}


DROPS = [("d1", "tie"), ("d2", "tie"), ("d3", "stale")]


def build(folder: Folder) -> None:
    (folder.path).mkdir()
    (folder.path / "config.yaml").write_text("recovery: {deadline_s: 60}\nsync: {in_flight: wait}\n")
    events = [member(index, state, 1.0) for state in ("starting", "serving") for index in (0, 1)]
    events += [{"event": "issue", "group": group, "generator": 0, "fence": 9} for group, _ in DROPS]
    events += [{"event": "drop", "group": group, "reason": why} for group, why in DROPS]
    for step in range(1, STEPS + 1):
        events += events_of(step)
        if step in (4, 6):
            events.append({"event": "snapshot", "step": step})
        for rank in range(RANKS):
            folder.write_rows([r for r in step_rows(step) if r["rank"] == rank], step, rank)
    events += [member(index, "gone", 200.0, "the run ends") for index in (0, 1)]
    folder.write_lines("events.jsonl", events)
    folder.write_lines("metrics.jsonl", [metrics_of(step) for step in range(1, STEPS + 1)])
    trained = [(r["group"], step) for step in range(1, STEPS + 1) for r in step_rows(step)]
    folder.commit(6, trained, DROPS)
    counts = {"issued": 27, "trained": 24, "leased": 0, "buffered": 0, "dropped": {"tie": 2, "stale": 1}}
    folder.summary(status="finished", comparisons=counts)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A run folder in which everything agrees."""
    made = Folder(tmp_path / "run")
    build(made)
    return made


@pytest.fixture
def resumed(folder: Folder) -> Folder:
    """The same run, but attempt 1 died after step 6 and attempt 2 went on from step 4 with other groups."""
    later = [{"event": "attempt_failed", "attempt": 1, "role": "learner", "cause": "killed", "at": 200.0}]
    later += [{"event": "resumed", "attempt": 2, "step": 4, "at": 210.0}]
    trained = [(r["group"], step) for step in range(1, 5) for r in step_rows(step)]
    for step in (5, 6):
        later += events_of(step, 2, "h")
        rows = step_rows(step, 2, "h")
        for rank in range(RANKS):
            folder.write_rows([r for r in rows if r["rank"] == rank], step, rank)
        trained += [(r["group"], step) for r in rows]
    folder.change("events.jsonl", lambda events: events.__setitem__(slice(-2, -2), later))
    folder.change("metrics.jsonl", lambda lines: lines.extend(metrics_of(step, 2) for step in (5, 6)))
    folder.commit(6, trained, DROPS)
    return folder


@pytest.fixture
def made() -> dict[str, Any]:
    """What builds pieces of the run."""
    return {
        "row": row,
        "events_of": events_of,
        "metrics_of": metrics_of,
        "member": member,
        "write_tensors": write_tensors,
        "digest": digest,
    }
