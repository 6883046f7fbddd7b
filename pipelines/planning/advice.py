"""The smallest fleet that keeps a learner busy, found by simulation, and what would help where none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from pipelines.planning.rates import Rates
from pipelines.planning.simulation import Outcome, Setup, simulate
from pipelines.settings_errors import SettingsError

GROUPS = 30_000  # of one simulation, about: some seconds for all of them
MARGIN = 0.8  # of the scorers' capacity that the plan uses
ALMOST = 0.97  # of the best throughput: more members for less than that are not worth it
LEARNER = "learner"
LATENCY = "latency"  # nothing that can be bought


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may be used. `devices`: generators and learner ranks together; then ranks are chosen as well."""

    generators: int = 64
    scorers: int = 64
    max_lag: int = 1
    waits: float = 0.05  # share of time that the learner may wait
    devices: int | None = None


@dataclass(frozen=True)
class Candidate:
    """The smallest fleet for so many ranks and this lag. `reached`: the learner waits as little as asked."""

    setup: Setup
    outcome: Outcome
    reached: bool
    bottleneck: str

    @property
    def devices(self) -> int:
        return self.setup.generators + self.setup.ranks

    def settings(self) -> dict[str, dict[str, int]]:
        """For the run's YAML."""
        setup, mib = self.setup, self.outcome.buffer_mib
        rollout = {"generators": setup.generators, "scorers": setup.scorers}
        return {
            "rollout": rollout | ({"buffer_mib": math.ceil(2 * mib)} if mib else {}),
            "learner": {"workers": setup.ranks, "groups_per_step": setup.groups_per_step},
            "sync": {"every": setup.sync_every, "max_lag": setup.max_lag},
        }

    def to_json(self) -> dict[str, Any]:
        told = {"reached": self.reached, "bottleneck": self.bottleneck, "settings": self.settings()}
        return told | {"setup": asdict(self.setup), "outcome": self.outcome.to_json()}


@dataclass(frozen=True)
class Advice:
    rates: Rates
    bounds: Bounds
    candidates: tuple[Candidate, ...]  # by ranks, then by lag

    @cached_property
    def best(self) -> Candidate:
        """The smallest whose learner waits as little as asked, then the freshest. In a budget, or where none
        reaches the share, the smallest that is as fast as any, nearly."""
        reached = [one for one in self.candidates if one.reached]
        if reached and self.bounds.devices is None:
            return min(reached, key=lambda one: (one.devices, one.setup.max_lag))
        fastest = max(one.outcome.groups_per_s for one in self.candidates)
        close = [one for one in self.candidates if one.outcome.groups_per_s >= ALMOST * fastest]
        return min(close, key=lambda one: (one.devices, one.setup.max_lag))

    def to_json(self) -> dict[str, Any]:
        return {
            "rates": self.rates.to_json(),
            "bounds": asdict(self.bounds),
            "best": self.best.to_json(),
            "candidates": [one.to_json() for one in self.candidates],
        }


def advise(rates: Rates, wanted: Setup, bounds: Bounds, *, seed: int = 0) -> Advice:
    """Candidates for each lag up to the bound. `wanted` gives ranks, groups per step and `sync_every`.

    Raises SettingsError when the budget holds no generator beside a learner rank.
    """
    least = 2 if bounds.devices is None else bounds.devices
    if least < 2 or min(bounds.generators, bounds.scorers) < 1 or not 0 < bounds.waits < 1:
        raise SettingsError(
            "plan: expected at least 2 devices, 1 generator and 1 scorer and a share between 0 and 1, got "
            f"{bounds}"
        )
    found = [
        _smallest(rates, replace(wanted, ranks=ranks, max_lag=lag), replace(bounds, generators=most), seed)
        for ranks, most in _splits(wanted, bounds)
        for lag in range(bounds.max_lag + 1)
    ]
    return Advice(rates, bounds, tuple(found))


def _splits(wanted: Setup, bounds: Bounds) -> Iterator[tuple[int, int]]:
    """Ranks, and the most generators beside them. In a budget powers of two, as data-parallel groups are."""
    if bounds.devices is None:
        yield wanted.ranks, bounds.generators
        return
    ranks = 1
    while ranks < bounds.devices and ranks <= wanted.groups_per_step:
        yield ranks, min(bounds.generators, bounds.devices - ranks)
        ranks *= 2


def _smallest(rates: Rates, wanted: Setup, bounds: Bounds, seed: int) -> Candidate:
    """The fewest generators whose learner waits at most `bounds.waits`; else the fewest that are as fast as
    all of them, nearly."""
    step_s = rates.step_s(wanted.ranks) + rates.publish_s / wanted.sync_every
    if step_s <= 0:
        raise SettingsError("plan: a learner step takes time; give step_fixed_s or step_work_s")
    demand = wanted.groups_per_step / step_s / rates.kept  # finished groups per second
    scorers = min(max(math.ceil(demand * rates.score_s / MARGIN), 1), bounds.scorers)
    least = min(max(math.ceil(demand / rates.groups_per_s(wanted.in_flight)), 1), bounds.generators)
    known: dict[int, Outcome] = {}

    def play(generators: int) -> Outcome:
        if generators not in known:
            known[generators] = _play(rates, replace(wanted, generators=generators, scorers=scorers), seed)
        return known[generators]

    size = _first(least, bounds.generators, lambda n: play(n).learner_waits <= bounds.waits)
    reached = size is not None
    if size is None:
        enough = ALMOST * play(bounds.generators).groups_per_s
        size = _first(1, bounds.generators, lambda n: play(n).groups_per_s >= enough)
    assert size is not None  # all of them are as fast as all of them
    setup = replace(wanted, generators=size, scorers=scorers)
    if reached:
        return Candidate(setup, play(size), True, LEARNER)
    full = replace(setup, generators=bounds.generators)
    return Candidate(setup, play(size), False, _bottleneck(rates, full, play(bounds.generators), seed))


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from `low` to `high` of which a property holds that holds from some number on."""
    size = low
    while not holds(size):
        if size >= high:
            return None
        low, size = size + 1, min(2 * size, high)
    while low < size:
        middle = (low + size) // 2
        low, size = (low, middle) if holds(middle) else (middle + 1, size)
    return size


def _bottleneck(rates: Rates, setup: Setup, now: Outcome, seed: int) -> str:
    """Of what more would help most."""
    more = {
        "generators": replace(setup, generators=2 * setup.generators),
        "scorers": replace(setup, scorers=2 * setup.scorers),
        "lag": replace(setup, max_lag=setup.max_lag + 1),
    }
    gains = {name: _play(rates, other, seed).groups_per_s for name, other in more.items()}
    best = max(gains, key=lambda name: gains[name])
    return best if ALMOST * gains[best] > now.groups_per_s else LATENCY


def _play(rates: Rates, setup: Setup, seed: int) -> Outcome:
    steps = min(max(GROUPS // setup.groups_per_step, 20), 60)
    return simulate(rates, setup, steps=steps, seed=seed)
