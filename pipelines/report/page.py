"""The report: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines import durable
from pipelines.lineage import Lineage
from pipelines.report import format as fmt
from pipelines.report import microscope, sections
from pipelines.report.rundir import Run, load

_HERE: Final = Path(__file__).parent


def render(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from what lies in the run directory and return its path.

    Works for interrupted, text-only and unevaluated runs; what is missing is said on the page.
    Raises FileNotFoundError when the directory holds no run at all.
    """
    run = load(run_dir)
    cards, notes = microscope.cards(run_dir, Lineage.of(run.events))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=fmt.number, compact=fmt.compact)  # pyright: ignore[reportUnknownMemberType]
    page = environment.get_template("report.html.j2").render(
        **_context(run),
        cards=cards,
        wrong_marks=_wrong_marks(cards),
        notes=[*run.notes, *notes],
        style=_style(),
    )
    target = run_dir / "report.html"
    with durable.swapped(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def _context(run: Run) -> dict[str, Any]:
    summary = run.summary or {}
    settings = sections.settings_of(run)
    curves, absent = sections.curves(run.metrics)
    return {
        "name": str(settings.get("name") or run.path.resolve().name),
        "facts": sections.facts(run, settings),
        "status": run.status,
        "stopped": sections.stopped(run),
        "headline": sections.headline(run),
        "change": sections.change_rows(run.change),
        "pope": sections.pope_rows(run.change),
        "items": run.items,
        "why_no_change": sections.why_no_change(run, settings),
        "curves": curves,
        "absent": absent,
        "bars": sections.stage_bars(run),
        "proofs": sections.proofs(run.events),
        "accounting": sections.accounting(summary),
        "faults": sections.fault_counts(run.events),
        "invariants": sections.invariants(summary),
        "alarms": sections.alarms(run.events),
        "settings_text": run.config,
        "versions": _strings(summary.get("versions")),
        "summary_text": json.dumps(summary, indent=2, ensure_ascii=False) if summary else "",
    }


def _wrong_marks(cards: Sequence[microscope.Card]) -> bool:
    sides = [side for card in cards for side in (card.chosen, card.rejected) if side]
    return any(piece.mark == "wrong" for side in sides for piece in side.pieces)


def _style() -> Markup:
    return Markup((_HERE / "report.css").read_text(encoding="utf-8"))


def _strings(mapping: Any) -> dict[str, str]:
    known = cast("dict[str, Any]", mapping) if isinstance(mapping, dict) else {}
    return {str(key): str(value) for key, value in known.items()}
