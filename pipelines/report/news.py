"""Lines for people about what a run lost and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.journal import Journal

SHOWN = 160  # characters of a cause; events.jsonl has all of it


class Announced(Journal):
    """A journal that tells `say` what is worth a line."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        super().__init__(path)
        self._say = say

    def append(self, record: Mapping[str, Any]) -> None:
        super().append(record)
        line = line_of(record) if "event" in record else None
        if line is not None:
            self._say(line)


def line_of(event: Mapping[str, Any]) -> str | None:
    """What is worth a line while the run goes on; None for the rest."""
    match event["event"]:
        case "member" if event["state"] == "gone" and event.get("why") not in _ON_PURPOSE:
            return f"{event['role']}-{event['index']} is lost: {_short(event['why'])}"
        case "member" if event["state"] == "serving" and event["role"] == "generator" and event["index"]:
            return f"generator-{event['index']} serves: {_short(event['why'])}"
        case "attempt_failed":
            return f"attempt {event['attempt']} ended: {_short(event['cause'])}"
        case "resumed":
            return f"attempt {event['attempt']} goes on after step {event['step']}"
        case "checkpoint_rejected":
            return f"a checkpoint is left aside: {_short(event['reason'])}"
        case "resize":
            return f"{event['wanted']} {event['role']}s wanted: {_short(event['why'])}"
        case "dead_letter":
            return f"prompt {event['prompt']!r} is a dead letter: {_short(event['faults'][-1]['detail'])}"
        case "alarm":
            return f"alarm: {event['monitor']} is {event['value']:.3g}: {_short(event['advice'])}"
        case _:
            return None


_ON_PURPOSE = ("the run ends", "has left", "not needed any more", "the attempt failed")


def _short(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
