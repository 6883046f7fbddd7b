"""What a person is told while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.journal import read_lines
from pipelines.report.news import Announced, line_of

LOST = {"event": "member", "role": "generator", "index": 2, "state": "gone", "why": "no\nanswer " + "x" * 400}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (LOST, "generator-2 is lost: no answer xxx"),
        (
            {"event": "attempt_failed", "attempt": 1, "cause": "learner: died"},
            "attempt 1 ended: learner: died",
        ),
        ({"event": "resumed", "attempt": 2, "step": 6}, "attempt 2 goes on after step 6"),
    ],
)
def test_losses_are_told_in_one_short_line(event: dict[str, Any], told: str) -> None:
    line = line_of(event)
    assert line is not None and line.startswith(told) and len(line) < 200 and "\n" not in line


def test_what_is_expected_is_not_told(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Announced(tmp_path / "events.jsonl", told.append)
    journal.write("member", role="scorer", index=0, state="gone", why="the run ends")
    journal.write("seal", step=1)
    journal.write(**LOST)
    journal.close()
    assert len(list(read_lines(tmp_path / "events.jsonl"))) == 3 and len(told) == 1
