"""An independent recount: what the learner ranks logged against what the ledger says.

The Parquet files are written by the learner ranks, the events by the driver, the summary's counts come from
the ledger. Three writers that agree are better evidence than one that is consistent with itself.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (pyarrow has no types)

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from pipelines.journal import read_lines
from pipelines.report.lineage import Lineage

_COLUMNS: Final = ("attempt", "step", "rank", "group", "comparison", "use")
_PARTS: Final = ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")
_END_OF_RUN: Final = "end_of_run"  # the ledger's reason for what a run that has enough leaves over
_NAMED: Final = 3  # examples in a message


def recount(run_dir: Path) -> dict[str, Any]:
    """Count a finished run again from its comparisons and events and compare with summary.json.

    Returns {"issued", "trained", "comparisons", "later_uses", "steps", "dropped": {reason: n},
    "discrepancies": [...]}, all of the final lineage (`Lineage`): issued, trained and dropped count groups,
    comparisons Parquet rows, later_uses those of comparisons that were trained on again.
    An empty list of discrepancies means that everything agrees.

    Reads the events `drop` (group, reason), `seal` (step, groups), `snapshot` (step), `proof` and `resumed`
    (attempt, step).
    """
    problems: list[str] = []
    events = list(read_lines(run_dir / "events.jsonl"))
    lineage = Lineage.of(events)
    rows = [row for row in _rows(run_dir, problems) if lineage.keeps(row["attempt"], row["step"])]
    drops = _final_drops(events, problems)
    trained = {str(row["group"]) for row in rows}
    dropped = {str(drop["group"]): str(drop["reason"]) for drop in drops}
    counted: dict[str, Any] = {
        "issued": len(trained | set(dropped)),
        "trained": len(trained),
        "comparisons": len(rows),
        "later_uses": sum(row["use"] > 1 for row in rows),
        "steps": len({row["step"] for row in rows}),
        "dropped": dict(sorted(Counter(dropped.values()).items())),
    }
    problems += _twice(rows, drops) + _both(trained, set(dropped)) + _gaps(rows)
    problems += _against_seals(events, rows) + _against_metrics(run_dir, rows)
    problems += _against_summary(run_dir, counted) + _unproved(events)
    return {**counted, "discrepancies": problems}


def _rows(run_dir: Path, problems: list[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted((run_dir / "comparisons").glob("*.parquet")):
        try:
            rows += pq.read_table(path, columns=[*_COLUMNS]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            problems.append(f"comparisons/{path.name} cannot be read ({type(error).__name__}: {error})")
    return rows


def _final_drops(events: Iterable[Mapping[str, Any]], problems: list[str]) -> list[Mapping[str, Any]]:
    """Drops that the final lineage remembers: a resume from step s keeps those before the snapshot of s.

    What was dropped only because the run had enough is not remembered, since a resumed run needs more.
    """
    drops: list[Mapping[str, Any]] = []
    remembered: dict[int, int] = {0: 0}  # step of a snapshot -> drops before it
    for event in events:
        kind = event.get("event")
        if kind == "drop":
            drops.append(event)
        elif kind == "snapshot":
            remembered[int(event["step"])] = len(drops)
        elif kind == "resumed":
            start = int(event["step"])
            if start not in remembered:
                problems.append(
                    f"attempt {event['attempt']} resumed from step {start}, which has no snapshot"
                )
            kept = drops[: remembered.get(start, len(drops))]
            drops = [drop for drop in kept if drop["reason"] != _END_OF_RUN]
            remembered = {0: 0, start: len(drops)}
    return drops


def _against_seals(events: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The groups of each trained step as the ledger sealed them; a step sealed again was rolled back."""
    sealed = {int(e["step"]): _sealed(e) for e in events if e.get("event") == "seal"}
    trained: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for row in rows:
        trained[int(row["step"])].add((str(row["group"]), int(row["use"])))
    return [
        f"step {step}: {len(groups - sealed.get(step, set()))} trained groups were not sealed for it and "
        f"{len(sealed.get(step, set()) - groups)} sealed groups were not trained"
        for step, groups in sorted(trained.items())
        if groups != sealed.get(step)
    ]


def _sealed(event: Mapping[str, Any]) -> set[tuple[str, int]]:
    """(group, use) of a sealed step."""
    later = {(str(group), int(use)) for group, _, use in event.get("later", ())}
    return {(str(group), 1) for group in event["groups"]} | later


def _twice(rows: Iterable[Mapping[str, Any]], drops: Iterable[Mapping[str, Any]]) -> list[str]:
    """A ticket (group, comparison, use) trained twice, a comparison twice in one step, a group for the first
    time in two steps or on two ranks, a group dropped twice."""
    rows = list(rows)
    tickets = Counter((str(row["group"]), str(row["comparison"]), int(row["use"])) for row in rows)
    within = Counter((str(row["group"]), str(row["comparison"]), int(row["step"])) for row in rows)
    places: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in rows:
        if row["use"] == 1:
            places[str(row["group"])].add((row["step"], row["rank"]))
    found = [
        f"comparison {comparison} of group {group} was trained {n} times for its use {use}"
        for (group, comparison, use), n in tickets.items()
        if n > 1
    ]
    found += [
        f"comparison {comparison} of group {group} is {n} times in step {step}"
        for (group, comparison, step), n in within.items()
        if n > 1
    ]
    found += [
        f"group {group} was trained in several places (step, rank): {sorted(where)}"
        for group, where in places.items()
        if len(where) > 1
    ]
    again = Counter(str(drop["group"]) for drop in drops)
    return found + [f"group {group} was dropped {n} times" for group, n in again.items() if n > 1]


def _both(trained: set[str], dropped: set[str]) -> list[str]:
    both = sorted(trained & dropped)
    return [f"{len(both)} groups were trained and dropped: {both[:_NAMED]}"] if both else []


def _gaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    steps = {int(row["step"]) for row in rows}
    missing = sorted(set(range(1, max(steps, default=0) + 1)) - steps)
    return [f"{len(missing)} steps have no trained comparison: {missing[:_NAMED]}"] if missing else []


def _against_metrics(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Comparisons per step as the learner reported them; of a step written twice the last line counts."""
    logged = Counter(int(row["step"]) for row in rows)
    reported = {
        int(line["step"]): int(line["comparisons"])
        for line in read_lines(run_dir / "metrics.jsonl")
        if line.get("comparisons") is not None
    }
    if not reported:
        return ["metrics.jsonl reports no comparisons"] if logged else []
    return [
        f"step {step}: metrics.jsonl has {reported.get(step, 0)} comparisons, the log holds {logged[step]}"
        for step in sorted(set(logged) | set(reported))
        if reported.get(step, 0) != logged[step]
    ]


def _against_summary(run_dir: Path, counted: Mapping[str, Any]) -> list[str]:
    path = run_dir / "summary.json"
    if not path.exists():
        return ["there is no summary.json"]
    counts: Any = json.loads(path.read_text(encoding="utf-8")).get("comparisons")
    if not isinstance(counts, dict) or "issued" not in counts:
        return [f"summary.json has no counts: {counts}"]
    said = cast("dict[str, Any]", counts)
    dropped = {str(reason): int(n) for reason, n in (said.get("dropped") or {}).items() if n}
    waiting = {name: int(said.get(name) or 0) for name in ("leased", "buffered", "sealed")}
    released = int(said.get("released") or 0)  # by an interrupted run; nobody else has a record of these
    again = said.get("later_uses") or {}
    settled = {"issued": said["issued"] - released, "trained": said.get("trained")}
    settled["later_uses"] = again.get("trained", 0)
    found = [
        f"{name}: summary.json says {settled[name]}, the log holds {counted[name]}"
        for name in settled
        if settled[name] != counted[name]
    ]
    if dropped != counted["dropped"]:
        found.append(f"dropped: summary.json says {dropped}, the log holds {counted['dropped']}")
    found += [f"{count} groups were left {name}" for name, count in waiting.items() if count]
    total = said.get("trained", 0) + sum(dropped.values()) + released + sum(waiting.values())
    if said["issued"] != total:
        found.append(f"summary.json: issued {said['issued']} is not the sum of its parts, {total}")
    return found


def _unproved(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Versions whose last proof by a generator has a failed part."""
    last = {(str(e["generator"]), int(e["version"])): e for e in events if e.get("event") == "proof"}
    return [
        f"{generator} did not prove weight version {version}: {', '.join(failed)} failed"
        for (generator, version), proof in last.items()
        if (failed := [part for part in _PARTS if proof.get(part) == "failed"])
    ]
