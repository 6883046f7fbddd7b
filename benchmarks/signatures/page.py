"""From runs to verdicts, and to docs/signatures.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from benchmarks.signatures.arms import ARMS
from benchmarks.signatures.rows import LOWER_IS_BETTER, Ordering, Row

Verdict = Literal["reproduced", "not reproduced", "undecided"]
Runs = Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> what was measured
DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Finding:
    """An ordering over the seeds: the advantage of the arm that should be better, with a 95% interval."""

    ordering: Ordering
    advantage: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        least = -(self.ordering.within or 0.0)
        if self.low > least:
            return "reproduced"
        return "not reproduced" if self.high < least else "undecided"


def found(ordering: Ordering, runs: Runs, seeds: Sequence[int]) -> Finding:
    """Paired differences of the seeds that both arms have, with Student's interval of their mean."""
    sign = -1.0 if ordering.measure in LOWER_IS_BETTER else 1.0
    pairs = [(runs.get((ordering.better, s)), runs.get((ordering.worse, s))) for s in seeds]
    values = [
        sign * (better[ordering.measure] - worse[ordering.measure])
        for better, worse in pairs
        if better is not None and worse is not None
    ]
    if len(values) < 2:
        return Finding(ordering, math.nan, -math.inf, math.inf, len(values))
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Finding(ordering, mean, mean - half, mean + half, len(values))


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """All orderings hold; one is contradicted; or neither."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts == {"reproduced"}:
        return "reproduced"
    return "not reproduced" if "not reproduced" in verdicts else "undecided"


def write(rows: Sequence[Row], runs: Runs, command: str, machine: str) -> None:
    """docs/signatures.md for people, docs/signatures.json for the page of methods."""
    sections: list[str] = []
    records: list[dict[str, Any]] = []
    for row in rows:
        findings = [found(ordering, runs, range(row.seeds)) for ordering in row.orderings]
        verdict = verdict_of(findings)
        sections.append(section(row, findings, verdict, runs))
        shown = sorted({recipe for arm in row.arms for recipe in ARMS[arm].shows})
        records.append({"key": row.key, "claim": row.claim, "verdict": verdict, "recipes": shown})
    introduction = (DOCS / "parts" / "signatures_introduction.md").read_text().rstrip()
    table = ["| claim | source | here |", "|---|---|---|"]
    for row, record in zip(rows, records, strict=True):
        table.append(f"| [{row.claim}](#{row.key}) | {row.source} | **{record['verdict']}** |")
    measured = f"Command: `{command}`. Machine: {machine}."
    text = "\n\n".join([introduction, measured, "\n".join(table), *sections])
    (DOCS / "signatures.md").write_text(text + "\n")
    (DOCS / "signatures.json").write_text(json.dumps({"rows": records}, indent=1) + "\n")


def section(row: Row, findings: Sequence[Finding], verdict: Verdict, runs: Runs) -> str:
    lines = [f"## `{row.key}`", "", f"{row.claim} ({row.source}): **{verdict}**.", ""]
    note = DOCS / "parts" / "signatures" / f"{row.key}.md"
    if note.exists():
        lines += [note.read_text().rstrip(), ""]
    lines += ["| ordering | measure | advantage, 95% over seeds | |", "|---|---|---|---|"]
    for finding in findings:
        ordering = finding.ordering
        sign = ">" if ordering.within is None else f">= (within {ordering.within:g})"
        size = f"{finding.advantage:.4f} [{finding.low:.4f}, {finding.high:.4f}], {finding.seeds} seeds"
        claim = f"`{ordering.better}` {sign} `{ordering.worse}`"
        lines.append(f"| {claim} | {ordering.measure} | {size} | {finding.verdict} |")
    lines += ["", "| arm | chair_i | recall | POPE | media margin, nats |", "|---|---|---|---|---|"]
    for arm in row.arms:
        own = [runs[arm, seed] for seed in range(row.seeds) if (arm, seed) in runs]
        cells = [spread([run[name] for run in own]) for name in ("chair_i", "recall", "pope", "media_margin")]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean, least and greatest over the seeds."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
