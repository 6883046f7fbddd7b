"""What became of a protocol run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.catalogue import FAULTS
from benchmarks.chaos.faults import Strike
from benchmarks.chaos.recount import Count


@dataclass
class Played:
    """What became of a run."""

    seed: int
    strikes: list[Strike] = field(default_factory=list[Strike])
    missed: list[str] = field(default_factory=list[str])  # faults whose state did not come up
    ends: list[str] = field(default_factory=list[str])  # how each driver ended
    count: Count = field(default_factory=Count)
    problems: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    window: tuple[float, float] | None = None  # monotonic, over which goodput is taken

    @property
    def goodput(self) -> float:
        """Groups a second of the window that are in the last checkpoint's lineage."""
        assert self.window is not None
        begin, end = self.window
        return sum(begin <= at < end for at in self.count.at) / (end - begin)

    @property
    def kills(self) -> int:
        return sum(FAULTS[made.fault].kills for made in self.strikes)

    def to_json(self) -> dict[str, Any]:
        count = {name: value for name, value in vars(self.count).items() if name != "at"}
        return vars(self) | {"strikes": [vars(s) for s in self.strikes], "count": count, "kills": self.kills}


def replaced(events: Iterable[Mapping[str, Any]], role: str, at: float) -> float | None:
    """Seconds after `at` (wall clock) until a process serves in the role that had not before. By process: a
    driver that resumes counts its workers from 0 again."""
    serving = [
        (event["at"], event["pid"])
        for event in events
        if event["event"] == "member" and event["state"] == "serving" and event["role"] == role
    ]
    before = {pid for when, pid in serving if when <= at}
    return min((when - at for when, pid in serving if pid not in before), default=None)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, default=str))
