"""What is printed where the output is no terminal: a line per stage and every tenth step."""

from __future__ import annotations

import io

from rich.console import Console

from pipelines.report.progress import Progress


def printed(steps: int, numbers: range) -> list[str]:
    output = io.StringIO()
    progress = Progress(steps, Console(file=output, width=80, force_terminal=False))
    progress.stage("align")
    for number in numbers:
        progress.step({"step": number, "reward": number / 4, "lag_max": 1})
    progress.stage("evaluate after")
    progress.close()
    return output.getvalue().splitlines()


def test_the_first_every_tenth_and_the_last_step_are_shown() -> None:
    assert printed(23, range(1, 24)) == [
        "plumbline: align",
        "step 1/23  reward 0.25 · lag 1",
        "step 10/23  reward 2.50 · lag 1",
        "step 20/23  reward 5.00 · lag 1",
        "step 23/23  reward 5.75 · lag 1",
        "plumbline: evaluate after",
    ]


def test_a_long_line_is_not_wrapped() -> None:
    output = io.StringIO()
    progress = Progress(1, Console(file=output, width=20, force_terminal=False))
    progress.step({"step": 1, "reward": 1.0, "hallucination": 0.5, "lag_max": 1, "tokens_per_s": 1000.0})
    progress.close()

    assert output.getvalue().count("\n") == 1


def test_a_terminal_gets_a_bar_instead_of_lines() -> None:
    output = io.StringIO()
    progress = Progress(2, Console(file=output, width=120, force_terminal=True))
    progress.stage("align")
    for number in (1, 2):
        progress.step({"step": number, "reward": 0.5})
    progress.close()

    shown = output.getvalue()
    assert "2/2" in shown and "align" in shown and "plumbline: align" not in shown and "step 2/2" not in shown
