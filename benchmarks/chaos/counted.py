"""What a real run trained, from the Parquet files that the learner's ranks wrote and the last manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from actors import checkpoints
from pipelines.audit import audit


def count_real(run_dir: Path) -> dict[str, Any]:
    """Groups lost and trained twice up to the last checkpoint, and what the auditor objects to."""
    import pyarrow.parquet as pq

    problems = [f"audit: {finding.line}" for finding in audit(run_dir).violated]
    found = checkpoints.newest_verified(run_dir)
    if found is None:
        return {"problems": [*problems, "there is no checkpoint"]}
    told = {name: step for name, step, *_ in found.manifest["ledger"]["trained"]}
    logged: Counter[tuple[str, int]] = Counter()
    for path in sorted((run_dir / "comparisons").glob("*.parquet")):
        table = pq.read_table(path, columns=["group", "step"]).to_pylist()
        logged.update({(row["group"], row["step"]) for row in table if row["step"] <= found.step})
    steps = Counter(group for group, _ in logged)
    twice = [group for group, times in steps.items() if times > 1]
    lost = [group for group, step in told.items() if (group, step) not in logged]
    if twice:
        problems.append(f"in two steps of the log: {twice[:5]}")
    if lost:
        problems.append(f"trained by the manifest, not in the log: {lost[:5]}")
    if extra := [group for group in steps if group not in told]:
        problems.append(f"in the log, not in the manifest: {extra[:5]}")
    return {
        "problems": problems,
        "trained": len(told),
        "steps": found.step,
        "lost": len(lost),
        "twice": len(twice),
        "attempts": found.manifest["attempt"],
    }
