"""How long requests take, by how many share the engine: what a capacity plan is made from."""

from __future__ import annotations

import time
from dataclasses import dataclass

Mark = tuple[float, float]


@dataclass
class Load:
    """Sums over requests that have ended. `crowd` of a request: how many were inside, averaged over its stay.

    A line through (crowd, seconds) tells the time of a lone request and what each further one costs.
    """

    requests: int = 0
    crowd: float = 0.0
    seconds: float = 0.0
    crowd_crowd: float = 0.0
    crowd_seconds: float = 0.0
    seconds_seconds: float = 0.0
    busy_s: float = 0.0  # with somebody inside

    def __post_init__(self) -> None:
        self._inside, self._area, self._at = 0, 0.0, time.monotonic()

    def enter(self) -> Mark:
        now = self._advance()
        self._inside += 1
        return now, self._area

    def leave(self, mark: Mark) -> None:
        now = self._advance()
        self._inside -= 1
        seconds = now - mark[0]
        if seconds <= 0:
            return
        crowd = (self._area - mark[1]) / seconds
        self.requests += 1
        self.crowd += crowd
        self.seconds += seconds
        self.crowd_crowd += crowd * crowd
        self.crowd_seconds += crowd * seconds
        self.seconds_seconds += seconds * seconds

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in vars(self).items() if not name.startswith("_")}

    def _advance(self) -> float:
        now = time.monotonic()
        self._area += self._inside * (now - self._at)
        self.busy_s += (now - self._at) if self._inside else 0.0
        self._at = now
        return now
