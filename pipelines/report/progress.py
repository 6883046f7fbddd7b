"""What a person sees while a run goes on: a bar with the numbers people watch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pipelines.report.console import progress_line

PLAIN_EVERY = 10  # steps between two lines where the output is no terminal


class Progress:
    """A live bar on a terminal, a line per stage and per few steps elsewhere."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._steps = steps
        self._console = console or Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bars.start()
        self._task = self._bars.add_task("starting", total=steps, numbers="")

    def stage(self, name: str) -> None:
        """A new stage of the run begins."""
        self._bars.update(self._task, description=name)
        if not self._console.is_terminal:
            self._console.print(f"plumbline: {name}", highlight=False)

    def say(self, line: str) -> None:
        """Something happened that people want to know at once."""
        self._console.print(f"plumbline: {line}", highlight=False, markup=False, soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A learner step was trained."""
        number = int(metrics["step"])
        self._bars.update(self._task, completed=number, numbers=progress_line(metrics))
        if not self._console.is_terminal and (number % PLAIN_EVERY == 0 or number in (1, self._steps)):
            line = f"step {number}/{self._steps}  {progress_line(metrics)}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()
