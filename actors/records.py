"""What the ledger tells of its work: events, metrics of steps, numbers of delivered groups."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipelines.types import Group


class Records:
    """Grows while the driver reads; events that were read are forgotten. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._facts: dict[str, list[float]] = {}  # of the groups delivered since the last sealed step
        self._dead = 0  # dead letters since then
        self._delivered = 0  # groups whose seconds are in `_seconds`
        self._seconds: Counter[str] = Counter()
        self._step_facts: dict[str, float] = {}
        self._metrics: list[dict[str, Any]] = []
        self._events: deque[dict[str, Any]] = deque(maxlen=100_000)
        self._number = 0
        self._clock, self._started = clock, clock()

    @property
    def seconds(self) -> float:
        """Since the start of the ledger."""
        return round(self._clock() - self._started, 3)

    def note(self, event: str, **fields: Any) -> None:
        self._number += 1
        self._dead += event == "drop" and fields["reason"] == "dead_letter"
        self._events.append({"event": event, "number": self._number, "time_s": self.seconds, **fields})

    def delivered(self, group: Group) -> None:
        for name, value in group.facts.items():
            self._facts.setdefault(name, []).append(value)
        self._facts.setdefault("ties", []).append(float(group.dropped == "tie"))
        self._seconds.update(group.seconds)
        self._delivered += 1

    def sealed(self, lags: list[int], first: int, later: int) -> None:
        """Means over what was delivered since the last step, ties included, and the lags of this one.

        `first`, `later`: comparisons of the step that come up for the first time, and again.
        """
        facts = {name: float(np.mean(values)) for name, values in self._facts.items()}
        self._facts.clear()
        again = {"reused": later / (first + later)} if later else {}
        lag = {"lag_max": max(lags), "lag_mean": float(np.mean(lags))}
        self._step_facts = {**facts, **again, "groups": len(lags), "dead_letters": self._dead, **lag}
        self._dead = 0

    def trained(self, step: int, stage: int, metrics: Mapping[str, Any]) -> None:
        """The learner's metrics of a step join those of the rollouts; the learner has the last word."""
        self._metrics.append(
            {"time_s": self.seconds, "stage": stage, **self._step_facts, **metrics, "step": step}
        )
        seconds = {name: round(s, 4) for name, s in self._seconds.items()}
        self.note("stage_seconds", step=step, seconds=seconds, delivered=self._delivered)
        self._seconds.clear()
        self._delivered = 0

    def progress(self, after: int) -> list[dict[str, Any]]:
        """Metrics of the trained steps above `after`."""
        return [metrics for metrics in self._metrics if metrics["step"] > after]

    def events(self, after: int) -> list[dict[str, Any]]:
        """Events with a number above `after`; older ones are forgotten."""
        while self._events and self._events[0]["number"] <= after:
            self._events.popleft()
        return list(self._events)
