"""What each section of the report says, as plain values for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import yaml

from pipelines.report import format as fmt
from pipelines.report.charts import Chart, line_chart
from pipelines.report.rundir import Change, Run

PROOF_PARTS: Final = {
    "bytes_received": "bytes received",
    "elements_loaded": "elements loaded",
    "canary_change": "canary change",
    "caches_fresh": "caches fresh",
}
_COLOURS: Final = 8  # of the palette in report.css
SHOWN: Final = 5  # pieces of evidence of one violation
OUTCOMES: Final = ("proved", "not distinguishable", "failed")

# (id, title, unit, {key in metrics.jsonl: label})
CURVES: Final[tuple[tuple[str, str, str, dict[str, str]], ...]] = (
    ("reward", "Reward of sampled answers", "score", {"reward": "mean", "reward_best": "best of group"}),
    ("hallucination", "Hallucination of sampled answers", "share of mentions", {"hallucination": "CHAIR-i"}),
    ("loss", "Loss", "nats", {"loss": "loss"}),
    ("margins", "Preference margins", "nats", {"margin/text": "text axis", "margin/media": "media axis"}),
    ("ratio", "Media margin / text margin", "ratio", {"margin_ratio": "ratio"}),
    ("reliance", "Visual reliance", "nats per answer", {"visual_reliance": "reliance"}),
    ("lag", "Weight lag", "published versions", {"lag_max": "largest", "lag_mean": "mean"}),
    ("throughput", "Trained tokens", "tokens per second", {"tokens_per_s": "tokens/s"}),
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    text: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure before and after, as text."""

    label: str
    before: str
    after: str
    change: str
    interval: str
    verdict: str


def headline(run: Run) -> Headline:
    """The one sentence that a reader takes away: numbers, and the interval where there is one."""
    change = run.change.get("chair_i")
    if change is not None and fmt.finite(change["difference"]) is not None:
        return _hallucination(change, run.items.get("caption", 0))
    rewards = [
        (int(line["step"]), line["reward"])
        for line in run.metrics
        if fmt.finite(line.get("reward")) is not None
    ]
    if not rewards:
        return Headline(text=f"{len(run.metrics)} learner steps were recorded.")
    (first, start), (last, end) = rewards[0], rewards[-1]
    return Headline(
        text=f"The mean reward of sampled answers went from {fmt.number(start)} at step {first} to "
        f"{fmt.number(end)} at step {last}.",
        note="Of training samples, not of held-out items; no interval.",
    )


def _hallucination(change: Mapping[str, Any], scenes: int) -> Headline:
    low, high = change["interval"]
    verb = "did not clearly change" if low <= 0 <= high else "fell" if high < 0 else "rose"
    before, after = fmt.percent(change["before"]), fmt.percent(change["after"])
    text = f"Hallucinated mentions {verb}: {before} before, {after} after."
    ratio, bounds = change.get("ratio"), change.get("ratio_interval")
    note = f"{scenes:,} held-out scenes, greedy decoding, the same scenes before and after."
    if ratio is not None and bounds:
        spread = f"{fmt.number(bounds[0])} to {fmt.number(bounds[1])}"
        note = f"After / before = {fmt.number(ratio)} (95% interval {spread}). {note}"
    return Headline(text=text, note=note)


def change_rows(change: Change) -> list[Row]:
    return [_row(name, change[name]) for name in change if not name.startswith("pope.")]


def pope_rows(change: Change) -> list[Row]:
    return [_row(name, change[name]) for name in change if name.startswith("pope.")]


def _row(name: str, change: Mapping[str, Any]) -> Row:
    return Row(
        label=fmt.measure(name)[0],
        before=fmt.value(name, change["before"]),
        after=fmt.value(name, change["after"]),
        change=fmt.change(name, change["difference"]),
        interval=fmt.bounds(name, change["interval"]),
        verdict=fmt.verdict(name, change["interval"]),
    )


def settings_of(run: Run) -> dict[str, Any]:
    try:
        settings: Any = yaml.safe_load(run.config)
    except yaml.YAMLError:
        return {}
    return cast("dict[str, Any]", settings) if isinstance(settings, dict) else {}


def why_no_change(run: Run, settings: Mapping[str, Any]) -> str:
    """Why there is no table of held-out measures; empty when there is one."""
    if run.change:
        return ""
    evaluation = _dict(settings.get("evaluation"))
    if evaluation and not any(evaluation.values()):
        return "This run was not evaluated: the settings ask for no held-out scenes and no questions."
    if _dict(settings.get("data")).get("source", "glyphs") != "glyphs":
        return "This run was not evaluated: only the glyphs world has held-out items and exact verifiers."
    if run.status != "finished":
        return f"This run ended before it was evaluated a second time ({run.why_no_change})."
    return f"This run has no held-out comparison: {run.why_no_change}."


def stopped(run: Run) -> str:
    """What to say when the run did not finish; empty when it did."""
    if run.status == "finished":
        return ""
    steps = f"{len(run.metrics)} learner steps are recorded"
    if run.status == "unfinished":
        return f"This run has no summary.json: it is still going on or was killed. {steps}."
    saved = sorted((run.path / "checkpoints").glob("step-*"), key=lambda path: (len(path.name), path.name))
    last = f"the last checkpoint is checkpoints/{saved[-1].name}" if saved else "there is no checkpoint"
    return f"This run did not finish ({run.status}). {steps}; {last}."


def facts(run: Run, settings: Mapping[str, Any]) -> dict[str, str]:
    summary = run.summary or {}
    found = {name: settings.get(name) for name in ("recipe", "model", "reward")}
    found |= {"seed": summary.get("seed", settings.get("seed")), "learner steps": len(run.metrics)}
    found["digest mismatches"] = _dict(summary.get("sight")).get("digest_mismatches")
    wall = fmt.finite(summary.get("wall_seconds"))
    if wall is not None:
        found["wall time"] = f"{wall / 60:.1f} min"
    return {name: str(value) for name, value in found.items() if value is not None}


def curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[str]]:
    """The learning curves that the run recorded, and the titles of those it did not."""
    charts: list[Chart] = []
    absent: list[str] = []
    edges = {key for line in metrics for key in line if key.startswith("margin/")}
    for name, title, unit, keys in CURVES:
        if name == "margins":  # a method may name its edges as it likes
            keys = keys | {key: key.removeprefix("margin/") for key in sorted(edges - keys.keys())}
        points = {label: _points(metrics, key) for key, label in keys.items()}
        series = {label: found for label, found in points.items() if found}
        if series:
            charts.append(line_chart(name, title, unit, series))
        else:
            absent.append(title)
    return charts, absent


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    values = ((float(line["step"]), fmt.finite(line.get(key))) for line in metrics)
    return [(step, value) for step, value in values if value is not None]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Seconds of one kind of worker, by phase, largest first; `width` is the share of the longest bar."""

    title: str
    seconds: Mapping[str, float]
    width: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def stage_bars(run: Run) -> list[Bar]:
    """One bar for the run's own stages (in sequence) and one per kind of worker (they overlap)."""
    stages: dict[str, dict[str, float]] = {}
    for name, value in _dict((run.summary or {}).get("stage_seconds")).items():
        known = fmt.finite(value)
        if known is not None and known > 0:
            place, _, phase = str(name).rpartition("/")
            stages.setdefault(place, {})[phase] = known
    longest = max((sum(seconds.values()) for seconds in stages.values()), default=1.0)
    return [
        Bar(
            title=place.capitalize() or "Stages of the run",
            seconds=_largest(stages[place]),
            width=sum(stages[place].values()) / longest,
        )
        for place in sorted(stages)
    ]


def _largest(seconds: Mapping[str, float]) -> dict[str, float]:
    """In order of size; what has no colour left is summed up as "other"."""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    kept, rest = ordered, ordered[:0]
    if len(ordered) > _COLOURS:
        kept, rest = ordered[: _COLOURS - 1], ordered[_COLOURS - 1 :]
    return dict(kept) | ({"other": sum(value for _, value in rest)} if rest else {})


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """Proofs of weight versions: counts by part and outcome, and every proof."""

    rows: Sequence[Mapping[str, Any]]
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    parts: Mapping[str, str] = field(default_factory=lambda: dict(PROOF_PARTS))
    outcomes: Sequence[str] = OUTCOMES


def proofs(events: Sequence[Mapping[str, Any]]) -> Proofs:
    rows = [event for event in events if event.get("event") == "proof"]
    counts = {
        label: [sum(row.get(part) == outcome for row in rows) for outcome in OUTCOMES]
        for part, label in PROOF_PARTS.items()
    }
    return Proofs(rows=rows, counts=counts)


def accounting(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What became of the issued groups; drops by reason."""
    counts = _dict(summary.get("comparisons"))
    dropped = _dict(counts.get("dropped"))
    names = ["issued", "trained", "leased", "buffered"] if counts else []
    names += [name for name in ("sealed", "released") if counts.get(name)]
    rows = [(name, fmt.compact(counts.get(name))) for name in names]
    return rows + [(f"dropped: {reason}", fmt.compact(count)) for reason, count in sorted(dropped.items())]


def invariants(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(code and name, status, what was counted or what speaks against it) of each audited invariant."""
    findings = cast("list[dict[str, Any]]", _dict(summary.get("audit")).get("findings") or [])
    return [
        (
            f"{finding['code']} {finding['name']}",
            str(finding["status"]),
            "; ".join(finding["evidence"][:SHOWN]) or str(finding["counted"]),
        )
        for finding in findings
    ]


def alarms(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the health monitors raised, in order."""
    return [event for event in events if event.get("event") == "alarm"]


def fault_counts(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Failures by role and reason; each was issued again or counted as a drop."""
    found = Counter(f"{e.get('role')}: {e.get('reason')}" for e in events if e.get("event") == "fault")
    return sorted(found.items())


def _dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
