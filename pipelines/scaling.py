"""How many workers a run wants: from who waits for whom to the size of a pool. Pure, without a clock.

The learner takes groups at a rate C and a generator makes them at a rate g, so `need = C / g` generators keep
it busy. Two shares of time tell where a pool of n stands (model inferred, not from a paper):

    learner_waits = w    too few:   n = need (1 - w)      so   need = n / (1 - w)
    held_back     = h    too many:  the staleness bound stops them for a share h, so   need = n (1 - h)

The pool grows to ceil(need), at most twofold at a time, and shrinks by one while `need` would fill less
than `FULL` of the smaller pool. After growing, need > n - 1, so it does not shrink; after shrinking,
need < n, so it does not grow: steady demand cannot make it swing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipelines.settings import RolloutSettings

Role = Literal["generator", "scorer", "perturber"]
ROLES: tuple[Role, ...] = ("generator", "scorer", "perturber")

LACK = 0.15  # share of time that the learner waits from which on the pool is too small
CALM = 0.05  # share below which a signal is noise
FULL = 0.85  # of a pool's capacity that may be in use after shrinking
GROW_S = 30.0  # that a change gets to show its effect before the pool grows again
SHRINK_S = 120.0  # the same before it shrinks: a generator that is wanted again costs a start
WINDOW_S = 30.0  # over which signals are averaged


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Sizes of a pool. `high` None: as many as a user asks for; nothing scales above `start` by itself."""

    low: int
    start: int
    high: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.start <= (self.start if self.high is None else self.high):
            raise ValueError(f"pool: expected 1 <= low <= start <= high, got {self}")

    @property
    def most(self) -> int:
        return self.start if self.high is None else self.high

    def clamp(self, size: int) -> int:
        return max(self.low, min(size, self.most))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bounds of every pool of a run. `standbys`: generators that are loaded and idle until one is lost."""

    generator: Bounds
    scorer: Bounds
    perturber: Bounds
    standbys: int = 0

    @classmethod
    def of(cls, rollout: RolloutSettings) -> Sizes:
        low = rollout.min_generators or rollout.generators
        return cls(
            generator=Bounds(low=low, start=rollout.generators, high=rollout.max_generators),
            scorer=Bounds(low=rollout.scorers, start=rollout.scorers, high=rollout.max_scorers),
            perturber=Bounds(low=rollout.perturbers, start=rollout.perturbers, high=rollout.max_perturbers),
            standbys=rollout.standbys,
        )

    def role(self, role: Role) -> Bounds:
        return {"generator": self.generator, "scorer": self.scorer, "perturber": self.perturber}[role]


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Who waits for whom: shares between 0 and 1, of a moment or of a stretch of time.

    `learner_waits`: the learner has no step to train. `held_back`: of the generators, those that hold no work
    because the staleness bound admits none.
    """

    learner_waits: float
    held_back: float

    def __post_init__(self) -> None:
        if not (0 <= self.learner_waits <= 1 and 0 <= self.held_back <= 1):  # also what is not a number
            raise ValueError(f"signals are shares between 0 and 1, got {self}")


def needed(size: int, signals: Signals, bounds: Bounds) -> int:
    """The size of a pool that has `size` members now."""
    waits, held = signals.learner_waits, signals.held_back
    if waits >= LACK and held <= CALM:
        need = math.ceil(size / (1 - waits) - 1e-9) if waits < 1 else 2 * size
        return bounds.clamp(min(need, 2 * size))
    if waits <= CALM and size > 1 and size * (1 - held) <= FULL * (size - 1):
        return bounds.clamp(size - 1)
    return bounds.clamp(size)


def follower(bounds: Bounds, generators: int, of: Bounds) -> int:
    """The size of a pool that keeps its proportion to the generators, whose bounds are `of`."""
    return bounds.clamp(math.ceil(bounds.start * generators / of.start - 1e-9))


@dataclass
class Scaler:
    """`needed` over time: averages the signals and lets a change show its effect before the next one."""

    bounds: Bounds
    _seen: deque[tuple[float, Signals]] = field(default_factory=deque[tuple[float, Signals]])
    _changed_at: float | None = None

    def changed(self, now: float) -> None:
        """The pool got another size, or lost a member: what was seen before says nothing any more."""
        self._changed_at = now
        self._seen.clear()

    def wanted(self, size: int, moment: Signals, now: float) -> int:
        """The size wanted at `now` (seconds of any clock that never goes back)."""
        if self._changed_at is None:
            self._changed_at = now
        self._seen.append((now, moment))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        calm_for = now - self._changed_at
        size = self.bounds.clamp(size)
        if calm_for < GROW_S:
            return size
        target = needed(size, self._mean(), self.bounds)
        if target < size and calm_for < SHRINK_S:
            return size
        return target

    def _mean(self) -> Signals:
        count = len(self._seen)
        return Signals(
            learner_waits=min(1.0, sum(s.learner_waits for _, s in self._seen) / count),
            held_back=min(1.0, sum(s.held_back for _, s in self._seen) / count),
        )
