"""What an audit reads: the files of a run, and what became of every group by them.

Three writers left them: the driver `events.jsonl` and `metrics.jsonl`, the learner's ranks `comparisons/` and
`checkpoints/`. The ledger's own counters (in summary.json) are compared with them and never believed.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (pyarrow has no types)

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast

import yaml

from pipelines.journal import read_lines
from pipelines.lineage import Lineage

Status = Literal["holds", "violated", "not checkable"]

END_OF_RUN: Final = "end_of_run"  # the ledger's reason for what a run that has enough leaves over
MANIFEST: Final = "manifest.json"
NAMED: Final = 3  # examples in a message
_COLUMNS: Final = (
    *("attempt", "step", "rank", "group", "comparison", "use"),
    *("version_newest", "version_digest", "version_spans"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One invariant, recounted."""

    code: str  # "I1"
    name: str  # "conservation"
    status: Status
    counted: str  # what was looked at, with numbers
    evidence: tuple[str, ...] = ()  # of the violation, or why it cannot be checked

    @property
    def line(self) -> str:
        start = f"{self.code} {self.name}: "
        if self.status == "holds":
            return f"{start}holds ({self.counted})"
        more = f" (and {len(self.evidence) - NAMED} more)" if len(self.evidence) > NAMED else ""
        return f"{start}{self.status.upper()}: {'; '.join(self.evidence[:NAMED])}{more}"


@dataclass
class Outcome:
    """What an invariant's recount found."""

    counted: str = ""
    problems: list[str] = field(default_factory=list[str])
    unknown: str = ""  # why (a part of) it cannot be checked


@dataclass
class Books:
    """Groups of the final lineage by what the events say became of them."""

    issued: dict[str, str] = field(default_factory=dict[str, str])  # group -> generator of its last lease
    drops: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # group, reason
    released: set[str] = field(default_factory=set[str])
    sealed: dict[int, set[tuple[str, int]]] = field(
        default_factory=dict[int, set[tuple[str, int]]]
    )  # step -> (group, use)
    excused: set[str] = field(default_factory=set[str])  # settled where the log of a lost ledger is torn
    logged: bool = False  # whether leases are in the log at all


class Evidence:
    """The files of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.unreadable: list[str] = []
        self.config = self._yaml(run_dir / "config.yaml")
        self.summary = _object(self._json(run_dir / "summary.json"))
        self.events = self._lines(run_dir / "events.jsonl")
        self.metrics = self._lines(run_dir / "metrics.jsonl")
        self.lineage = Lineage.of(self.events)
        self.columns: set[str] = set()  # of all comparison files
        self.rows = list(self.read(_COLUMNS))

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of the final lineage's comparisons, as far as the files have them."""
        needed = {"attempt", "step", *columns}
        return (row for row in self._rows(needed) if self.lineage.keeps(row["attempt"], row["step"]))

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.get("event") == kind]

    def setting(self, dotted: str, default: Any) -> Any:
        value: Any = self.config
        for key in dotted.split("."):
            value = _object(value).get(key)
        return default if value is None else value

    @property
    def status(self) -> str:
        """ "finished", "interrupted: ...", "failed: ..."; "unfinished" without a summary."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def said(self) -> Mapping[str, Any]:
        """The ledger's own counters."""
        return _object(self.summary.get("comparisons"))

    @cached_property
    def trained(self) -> dict[str, int]:
        """Group -> the step of its first use."""
        return {str(row["group"]): int(row["step"]) for row in self.rows if row["use"] == 1}

    @cached_property
    def steps(self) -> list[Mapping[str, Any]]:
        """Metrics of the final lineage, one line per step; of a step written twice the last line counts."""
        kept = [line for line in self.metrics if self.lineage.keeps(line.get("attempt", 2**31), line["step"])]
        newest = {int(line["step"]): line for line in kept}
        return [newest[step] for step in sorted(newest)]

    @cached_property
    def books(self) -> Books:
        """Replays the events; a resume from step s keeps what the snapshot of s had seen."""
        books, marks = Books(), {0: 0}  # step of a snapshot -> drops before it
        for event in self.events:
            kind = event.get("event")
            if kind == "issue":
                books.logged = True
                books.issued[str(event["group"])] = f"generator-{event.get('generator')}"
            elif kind == "drop":
                books.drops.append((str(event["group"]), str(event["reason"])))
            elif kind == "release":
                books.released |= {str(group) for group in event["groups"]}
            elif kind == "seal":
                books.sealed[int(event["step"])] = sealed(event)
            elif kind == "snapshot":
                marks[int(event["step"])] = len(books.drops)
            elif kind == "resumed":
                marks = self._resume(books, marks, event)
        return books

    def _resume(self, books: Books, marks: Mapping[int, int], event: Mapping[str, Any]) -> dict[int, int]:
        """What only the end of a run dropped is not remembered, since a resumed run needs more."""
        start, known = int(event["step"]), event.get("dropped")
        settled = {group for group, step in self.trained.items() if step <= start}
        if start in marks:
            kept = books.drops[: marks[start]]
        elif isinstance(known, Mapping):  # the ledger died before the driver had read of its snapshot
            kept = [(str(group), str(why)) for group, why in cast("Mapping[str, Any]", known).items()]
            books.excused |= settled | {group for group, _ in kept}
        else:
            kept = books.drops
            self.unreadable.append(
                f"attempt {event['attempt']} resumed from step {start}, which has no snapshot"
            )
        books.drops = [(group, why) for group, why in kept if why != END_OF_RUN]
        settled |= {group for group, _ in books.drops}
        books.issued = {group: by for group, by in books.issued.items() if group in settled}
        books.sealed = {step: groups for step, groups in books.sealed.items() if step <= start}
        books.released.clear()
        older = {step: number for step, number in marks.items() if step < start}
        kept_before = {step: sum(w != END_OF_RUN for _, w in kept[:n]) for step, n in older.items()}
        return {**kept_before, start: len(books.drops)}

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Committed checkpoints, newest first."""
        folder = self.run_dir / "checkpoints"
        found = [
            (int(match[1]), path)
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / MANIFEST).is_file()
        ]
        return [path for _, path in sorted(found, reverse=True)]

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Of the newest checkpoint; empty when there is none that can be read."""
        if not self.checkpoints:
            return {}
        try:
            return _object(json.loads((self.checkpoints[0] / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # the invariant of checkpoints says so
            return {}

    # -- reading --------------------------------------------------------------------------------------------

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            lines += (line for line in read_lines(path))
        except ValueError as error:
            self.unreadable.append(f"{path.name} cannot be read to its end ({error})")
        return lines

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            self.unreadable.append(f"{path.name} cannot be read ({error})")
            return None

    def _yaml(self, path: Path) -> Mapping[str, Any]:
        try:
            return _object(yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.unreadable.append(f"{path.name} cannot be read ({error})")
            return {}

    def _rows(self, columns: set[str]) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in sorted((self.run_dir / "comparisons").glob("*.parquet")):
            try:
                there = set(pq.read_schema(path).names)
                rows = pq.read_table(path, columns=sorted(columns & there)).to_pylist()
            except (pa.ArrowException, OSError) as error:
                problem = f"comparisons/{path.name} cannot be read ({type(error).__name__}: {error})"
                self.unreadable += [problem] if problem not in self.unreadable else []
                continue
            self.columns |= there
            yield from rows


def sealed(event: Mapping[str, Any]) -> set[tuple[str, int]]:
    """(group, use) of a sealed step."""
    later = {(str(group), int(use)) for group, _, use in event.get("later", ())}
    return {(str(group), 1) for group in event["groups"]} | later


def some(items: Sequence[Any] | set[Any]) -> str:
    """A few of many, for a message."""
    ordered = sorted(items)
    return f"{ordered[:NAMED]}" + (f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else "")


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
