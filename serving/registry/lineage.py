"""Where a checkpoint comes from, as far as the run's folder tells."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from actors.checkpoints import MANIFEST, read_manifest
from pipelines.journal import read_lines
from pipelines.lineage import Lineage
from pipelines.runs import CONFIG
from pipelines.settings import Settings, SettingsError, load


def lineage_of(checkpoint: Path) -> dict[str, Any]:
    """run, recipe, data_digest, weight_version, metrics and lineage of a verified checkpoint.

    `metrics.step` is what training measured at the checkpoint's own step; `metrics.heldout` the run's
    held-out evaluation, only at its last step, which is the one that was evaluated. What is not there is
    left out.
    """
    empty = {"run": None, "recipe": None, "data_digest": None, "weight_version": None}
    if not (checkpoint / MANIFEST).exists():
        return empty | {"metrics": {}, "lineage": {}}
    manifest = read_manifest(checkpoint)
    step, attempt = int(manifest["step"]), int(manifest["attempt"])
    lineage = {key: manifest[key] for key in ("step", "attempt", "packages", "origin") if key in manifest}
    facts = empty | {"weight_version": manifest.get("weight_version"), "metrics": {}, "lineage": lineage}
    run_dir = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (run_dir / CONFIG).is_file():
        return facts
    try:
        settings = load(run_dir / CONFIG)
    except SettingsError:  # of another release
        return facts | {"run": run_dir.name}
    lineage |= {"seed": settings.seed, "method": settings.method, "model": settings.model}
    return facts | {
        "run": run_dir.name,
        "recipe": settings.recipe,
        "data_digest": data_digest(settings),
        "metrics": _metrics(run_dir, step, attempt),
    }


def data_digest(settings: Settings) -> str | None:
    """SHA-256 of the file that the prompts come from, as it is now; of the embedded world, of what makes its
    rows. None where the file is gone."""
    data = settings.data
    if data.source == "glyphs":
        made = {"world": "glyphs", "seed": settings.seed, "count": data.count, "questions": data.questions}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    try:
        with Path(data.source).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _metrics(run_dir: Path, step: int, attempt: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kept = Lineage.of(read_lines(run_dir / "events.jsonl"))
    for line in read_lines(run_dir / "metrics.jsonl"):
        if line.get("step") == step and kept.keeps(int(line.get("attempt", attempt)), step):
            found["step"] = _finite(line)  # the last one counts: an attempt may have trained the step again
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    if summary.get("status") == "finished" and summary.get("steps") == step and summary.get("heldout"):
        found["heldout"] = summary["heldout"]
    return found


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """NaN is no JSON; a measure that was NaN is not known."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
