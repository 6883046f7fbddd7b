"""An independent audit: the invariants of a run, recounted from what its roles logged.

Each invariant is one function from the evidence to what holds, what does not and what cannot be told. The
ledger, whose promises these are, is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.audit.counting import conservation, counts, once
from pipelines.audit.disk import clean, durable
from pipelines.audit.ending import bounded
from pipelines.audit.evidence import Evidence, Finding, Outcome
from pipelines.audit.numbers import finite, no_invented_values
from pipelines.audit.weights import weights_truth

__all__ = ["INVARIANTS", "Audit", "Finding", "audit"]

INVARIANTS: Final[tuple[tuple[str, str, Callable[[Evidence], Outcome]], ...]] = (
    ("I1", "conservation", conservation),
    ("I2", "once", once),
    ("I3", "weights truth", weights_truth),
    ("I4", "bounded", bounded),
    ("I5", "no invented values", no_invented_values),
    ("I6", "durable", durable),
    ("I7", "clean", clean),
    ("I8", "finite", finite),
)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """`counted`: groups and comparisons of the final lineage, from the log alone."""

    findings: tuple[Finding, ...]
    counted: dict[str, Any]

    @property
    def violated(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == "violated"]

    def lines(self) -> list[str]:
        return [finding.line for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """{"violated": [code], "counted": {...}, "findings": [{"code", ..., "line"}]}"""
        return {
            "violated": [finding.code for finding in self.violated],
            "counted": self.counted,
            "findings": [{**asdict(finding), "line": finding.line} for finding in self.findings],
        }


def audit(run_dir: Path) -> Audit:
    """Recount a run that has ended from the files in its folder.

    To be called after its processes were told to end; waits for them for a few seconds. Bad evidence is a
    violation, never an error. Raises FileNotFoundError when the folder holds nothing of a run.
    """
    if not any((run_dir / name).exists() for name in ("config.yaml", "events.jsonl", "metrics.jsonl")):
        raise FileNotFoundError(f"{run_dir}: no run lies here; give the folder that `plumbline align` wrote")
    evidence = Evidence(run_dir)
    findings = tuple(_find(evidence, *invariant) for invariant in INVARIANTS)
    try:
        counted = counts(evidence)
    except Exception:  # the findings say why
        counted = {}
    return Audit(findings=findings, counted=counted)


def _find(evidence: Evidence, code: str, name: str, recount: Callable[[Evidence], Outcome]) -> Finding:
    try:
        outcome = recount(evidence)
    except Exception as error:  # whatever a damaged log holds must not hide the other findings
        text = f"the evidence is malformed ({type(error).__name__}: {error})"
        return Finding(code=code, name=name, status="violated", counted="", evidence=(text,))
    if outcome.problems:
        status, told = "violated", tuple(outcome.problems)
    else:
        status, told = ("not checkable", (outcome.unknown,)) if outcome.unknown else ("holds", ())
    return Finding(code=code, name=name, status=status, counted=outcome.counted, evidence=told)
