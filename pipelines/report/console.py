"""What the terminal shows: one line of numbers while training, one table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.report import format as fmt

_COLOURS: Final = {"better": "green", "worse": "red", "no clear change": "dim"}


def before_after_table(summary: Mapping[str, Any]) -> RenderableType:
    """Held-out measures before and after with paired 95% intervals, from `summary["heldout"]["change"]`."""
    heldout: Mapping[str, Any] = summary.get("heldout") or {}
    changes: Mapping[str, Mapping[str, Any]] = heldout.get("change") or {}
    if not changes:
        return Text("This run was not evaluated before and after.")
    table = Table(title="Held-out measures before and after", title_justify="left")
    table.add_column("measure")
    for column in ("before", "after", "change", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("reading")
    for name, change in changes.items():
        reading = fmt.verdict(name, change["interval"])
        table.add_row(
            fmt.measure(name)[0],
            fmt.value(name, change["before"]),
            fmt.value(name, change["after"]),
            fmt.change(name, change["difference"]),
            fmt.bounds(name, change["interval"]),
            reading,
            style=_COLOURS.get(reading),
        )
    return table


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the run proves of itself: weights in four parts, accounting, invariants, lag and sight."""
    lines: list[str] = []
    if sync := summary.get("sync"):
        proved = f"{sync['verified']} of {sync['versions']} versions proved"
        lines.append(f"weights: {proved}, {sync['failed']} failed")
        for part, results in sync["parts"].items():
            found = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
            lines.append(f"  {part.replace('_', ' ')}: {found}")
    counts: Mapping[str, Any] = summary.get("comparisons") or {}
    if "issued" in counts:
        dropped: Mapping[str, int] = counts["dropped"]
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(dropped.items()))
        ends = [f"{counts['trained']} trained", f"{sum(dropped.values())} dropped"]
        ends[1] += f" ({reasons})" if reasons else ""
        ends += [f"{counts['released']} released"] if counts.get("released") else []
        lines.append(f"groups: {counts['issued']} issued = {' + '.join(ends)}")
    if "audit" in summary:
        lines.append("audit, from logs that are not the ledger's:")
        lines += [f"  {finding['line']}" for finding in summary["audit"]["findings"]]
    if alarms := summary.get("alarms"):
        raised = ", ".join(f"{name} {number}" for name, number in sorted(alarms.items()))
        lines.append(f"monitors: {raised}; report.html has the alarms")
    if lag := summary.get("lag"):
        lines.append(f"lag: {fmt.compact(lag['max'])} versions at most, {fmt.number(lag['mean'])} on average")
    if sight := summary.get("sight"):
        reliance = fmt.finite(sight["visual_reliance"])
        seen = f", visual reliance {fmt.number(reliance)} nats" if reliance is not None else ""
        lines.append(f"sight: {sight['digest_mismatches']} digest mismatches{seen}")
    return lines


def progress_line(metrics: Mapping[str, Any]) -> str:
    """The numbers people watch, from one line of metrics.jsonl; what the run does not measure is left out."""
    pieces: list[str] = []
    if fmt.finite(metrics.get("reward")) is not None:
        pieces.append(f"reward {fmt.number(metrics['reward'])}")
    if fmt.finite(metrics.get("hallucination")) is not None:
        pieces.append(f"hallucination {fmt.percent(metrics['hallucination'], 0)}")
    axes = [f"margin/{axis}" for axis in ("text", "media")]
    axes += [key for key in metrics if key.startswith("margin/") and key not in axes]
    margins = [fmt.finite(metrics.get(key)) for key in axes]
    if any(margin is not None for margin in margins):
        pieces.append("margin " + "/".join(fmt.number(m) for m in margins if m is not None))
    if fmt.finite(metrics.get("lag_max")) is not None:
        pieces.append(f"lag {fmt.compact(metrics['lag_max'])}")
    if fmt.finite(metrics.get("tokens_per_s")) is not None:
        pieces.append(f"{fmt.number(metrics['tokens_per_s'], 0)} tokens/s")
    return " \N{MIDDLE DOT} ".join(pieces)
