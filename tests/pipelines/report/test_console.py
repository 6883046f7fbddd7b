"""The terminal's table and line."""

from __future__ import annotations

import io
import math

from rich.console import Console

from pipelines.report.console import before_after_table, closing_lines, progress_line


def shown(summary: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(before_after_table(summary))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    plain = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "none")
    return " ".join(plain.replace("│", " ").split())


def test_table_shows_shares_in_points_with_intervals() -> None:
    change = {"before": 0.451, "after": 0.126, "difference": -0.325, "interval": [-0.34, -0.31]}
    text = shown({"heldout": {"change": {"chair_i": change, "mean_length": {**change, "interval": None}}}})
    assert "Hallucinated mentions (CHAIR-i) 45.1% 12.6% -32.5 -34.0 to -31.0 better" in text
    assert "Mean length 0.45 0.13 -0.33 none" in text


def test_worse_and_unclear_changes_are_named() -> None:
    recall = {"before": 0.9, "after": 0.8, "difference": -0.1, "interval": [-0.12, -0.08]}
    assert "worse" in shown({"heldout": {"change": {"object_recall": recall}}})
    unclear = {**recall, "interval": [-0.12, 0.0]}
    assert "no clear change" in shown({"heldout": {"change": {"object_recall": unclear}}})


def test_a_run_without_evaluation_says_so() -> None:
    assert "was not evaluated" in shown({"heldout": {}})


def test_progress_line_shows_what_is_measured() -> None:
    line = {
        "reward": 1.234,
        "hallucination": 0.312,
        "margin/text": 0.42,
        "margin/media": 0.1,
        "lag_max": 1,
        "tokens_per_s": 1234.4,
    }
    assert (
        progress_line(line) == "reward 1.23 · hallucination 31% · margin 0.42/0.10 · lag 1 · 1,234 tokens/s"
    )
    assert (
        progress_line({"reward": math.nan, "margin/text": -0.5, "margin/media": None})
        == "margin \N{MINUS SIGN}0.50"
    )
    assert progress_line({}) == ""


def test_closing_lines_say_what_the_run_proves() -> None:
    parts = {"canary_change": {"proved": 2, "not distinguishable": 1}}
    summary = {
        "sync": {"versions": 3, "verified": 3, "failed": 0, "parts": parts},
        "comparisons": {"issued": 9, "trained": 6, "dropped": {"tie": 2}, "released": 1},
        "audit": {"findings": [{"line": "I1 conservation: holds (9 groups)"}]},
        "alarms": {"ties": 1},
        "lag": {"max": 1.0, "mean": 0.5},
        "sight": {"digest_mismatches": 0, "visual_reliance": 3.25},
    }
    assert closing_lines(summary) == [
        "weights: 3 of 3 versions proved, 0 failed",
        "  canary change: 1 not distinguishable, 2 proved",
        "groups: 9 issued = 6 trained + 2 dropped (tie 2) + 1 released",
        "audit, from logs that are not the ledger's:",
        "  I1 conservation: holds (9 groups)",
        "monitors: ties 1; report.html has the alarms",
        "lag: 1 versions at most, 0.50 on average",
        "sight: 0 digest mismatches, visual reliance 3.25 nats",
    ]
    assert closing_lines({}) == []
