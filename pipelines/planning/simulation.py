"""A run's flow in virtual time: the protocol of the loop, the ledger and the weights, without the work.

    issue --gate--> generator --> scorer --> buffer --seal--> learner --> published version --> every gate

What is real: `pipelines.admission.Admission` decides who gets a lease; the least loaded generator does, up to
`in_flight`; a generator drains before it takes over a version and adopts versions in their order; the buffer
drops what has become too old; a step takes the oldest groups; a version is out every `sync_every` steps.

What is modelled: a generator with n groups gives each of them 1 / (latency_s + (n - 1) sample_s) of a group
per second, whatever else runs on its machine; group sizes are gamma distributed around 1 and the same for the
same seed whatever the fleet; scorers share one queue. Losses and their recovery are left out.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.admission import Admission, Stretch
from pipelines.loop import Limits
from pipelines.planning.rates import Rates

IN_FLIGHT, TICK_S = Limits().in_flight, Limits().tick_s
EVEN = 1e-3  # a smaller spread is none
ALIKE = 1e-9  # of a group: what ends so close together ends together
Group = tuple[int, int, int, bool]  # version, cursor, generator, whether there is something to learn from
DONE, ARRIVED, OPENED, LOOK, SCORED, DELIVERED, TRAINED = range(7)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run can choose."""

    generators: int
    scorers: int = 1
    ranks: int = 1
    groups_per_step: int
    sync_every: int = 1
    max_lag: int = 1
    in_flight: int = IN_FLIGHT  # leases of one generator at a time

    def __post_init__(self) -> None:
        for name in ("generators", "scorers", "ranks", "groups_per_step", "sync_every", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan: {name} is at least 1, got {getattr(self, name)}")
        if self.max_lag < 0:
            raise ValueError(f"plan: max_lag is at least 0, got {self.max_lag}")

    def admission(self, steps: int) -> Admission:
        stage = Stretch(last=steps, max_lag=self.max_lag)
        return Admission(sync_every=self.sync_every, groups_per_step=self.groups_per_step, stages=(stage,))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Means and shares are of the time after the first quarter of the steps; counts are of the whole run."""

    steps: int
    seconds: float  # until the last step is trained
    groups_per_s: float  # trained
    steps_per_hour: float
    learner_waits: float  # share of time that the learner waits for groups
    generators_busy: float  # share of time that a generator has a group inside
    scorers_busy: float
    groups_inside: float  # of a generator, mean
    lag_mean: float  # published versions
    lag_max: int
    stale_share: float  # of all finished groups
    leased_mean: float
    leased_max: int
    buffered_mean: float
    buffered_max: int
    buffer_mib: float | None  # most; None: the size of a group is not known
    issued: int
    trained: int
    leased: int
    buffered: int
    dropped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def simulate(rates: Rates, setup: Setup, *, steps: int, seed: int = 0) -> Outcome:
    """Play `steps` learner steps. Raises ValueError for fewer than one."""
    return _Flow(rates, setup, steps, seed).play()


class _Generator:
    """Shares itself between those inside; `progress` is what each of them got since the start, in groups."""

    __slots__ = ("adopting", "closed", "inside", "progress", "seen", "stamp", "version", "waiting")

    def __init__(self) -> None:
        self.inside: list[tuple[float, Group]] = []  # heap of (progress at which it ends, group)
        self.waiting: list[tuple[int, bool, float]] = []  # cursor, kept, size: at the closed gate
        self.progress = self.seen = 0.0
        self.stamp = 0
        self.version = 0
        self.adopting = self.closed = False


class _Means:
    """Integrals over time since `begin`."""

    def __init__(self) -> None:
        self.since = self.leased = self.buffered = self.inside = 0.0
        self.occupied = self.scoring = self.waiting = 0.0


class _Flow:
    def __init__(self, rates: Rates, setup: Setup, steps: int, seed: int) -> None:
        self.rates, self.setup, self.steps = rates, setup, steps
        self.admission = setup.admission(steps)
        self.random = random.Random(seed)
        self.shape = 1 / rates.spread**2 if rates.spread > EVEN else 0.0
        self.now = 0.0
        self.agenda: list[tuple[float, int, int, Any]] = []
        self.number = 0
        self.generators = [_Generator() for _ in range(setup.generators)]
        self.load = [0] * setup.generators
        # Version -> heap of (load, generator), partly outdated; versions that somebody has, in their order.
        self.able = {0: [(0, index) for index in range(setup.generators)]}
        self.holders = {0: setup.generators}
        self.free_scorers = setup.scorers
        self.queue: deque[Group] = deque()
        self.buffer: list[Group] = []  # heap: the oldest first
        self.issued = self.leased = self.sealed = self.trained = 0
        self.inside = self.occupied = 0
        self.step = self.sealed_step = self.published = 0
        self.dropped = {"nothing_to_learn": 0, "stale": 0}
        self.leased_max = self.buffered_max = self.lag_max = 0
        self.lags = self.counted = 0
        self.means = _Means()
        self.window = (0.0, 0)  # when it began, groups trained by then
        self.warm = steps // 4
        self.awake = False  # the loop issues leases when all has happened that happens at the same time
        self.woke = 0.0  # when it last did

    def play(self) -> Outcome:
        if self.steps < 1:
            raise ValueError(f"plan: a simulation has at least 1 step, got {self.steps}")
        generating = (self._done, self._arrived, self._opened, self._wake)
        handle = (*generating, self._scored, self._delivered, self._trained)
        self._issue()
        while self.step < self.steps:
            at, _, kind, what = heapq.heappop(self.agenda)
            self._pass(at)
            handle[kind](what)
            if self.awake and (not self.agenda or self.agenda[0][0] > self.now):
                self.awake, self.woke = False, self.now
                self._issue()
        return self._outcome()

    def _at(self, delay: float, kind: int, what: Any) -> None:
        self.number += 1
        heapq.heappush(self.agenda, (self.now + delay, self.number, kind, what))

    def _pass(self, at: float) -> None:
        """Let time go on to `at`."""
        span, means = at - self.now, self.means
        self.now = at
        if span <= 0:
            return
        means.leased += self.leased * span
        means.buffered += len(self.buffer) * span
        means.inside += self.inside * span
        means.occupied += self.occupied * span
        means.scoring += (self.setup.scorers - self.free_scorers) * span
        means.waiting += 0.0 if self.sealed else span

    # -- leases ---------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        """Lease while a generator admits: always the least loaded one."""
        while True:
            live = self.leased + len(self.buffer) + self.sealed
            best: tuple[int, int] | None = None
            for version in reversed(self.able):  # the newest first: what it may not do, no older one may
                if not self.admission.admits(version, 0, self.trained, live):
                    break
                found = self._least(version)
                if found is not None and (best is None or found < best):
                    best = found
            if best is None:
                return
            self._lease(best[1])

    def _wake(self, _: None = None) -> None:
        self.awake = True

    def _least(self, version: int) -> tuple[int, int] | None:
        heap = self.able[version]
        while heap:
            load, index = heap[0]
            if load == self.load[index] and version == self.generators[index].version:
                return heap[0] if load < self.setup.in_flight else None
            heapq.heappop(heap)
        return None

    def _loaded(self, index: int, change: int) -> None:
        self.load[index] += change
        heapq.heappush(self.able[self.generators[index].version], (self.load[index], index))

    def _lease(self, index: int) -> None:
        size = self.random.gammavariate(self.shape, 1 / self.shape) if self.shape else 1.0
        kept = self.random.random() < self.rates.kept
        cursor, self.issued, self.leased = self.issued, self.issued + 1, self.leased + 1
        self.leased_max = max(self.leased_max, self.leased)
        self._loaded(index, 1)
        generator = self.generators[index]
        if generator.closed:
            generator.waiting.append((cursor, kept, size))
        else:
            self._share(generator)
            self._enter(index, cursor, kept, size)
            self._next_end(index)

    # -- generators -----------------------------------------------------------------------------------------

    def _share(self, generator: _Generator) -> None:
        """Give those inside what they got since it was last looked at."""
        count = len(generator.inside)
        if count:
            each_s = self.rates.latency_s + (count - 1) * self.rates.sample_s
            generator.progress += (self.now - generator.seen) / each_s
        generator.seen = self.now

    def _enter(self, index: int, cursor: int, kept: bool, size: float) -> None:
        generator = self.generators[index]
        group = (generator.version, cursor, index, kept)
        self.occupied += not generator.inside
        self.inside += 1
        heapq.heappush(generator.inside, (generator.progress + size, group))

    def _next_end(self, index: int) -> None:
        generator = self.generators[index]
        generator.stamp += 1
        if generator.inside:
            each_s = self.rates.latency_s + (len(generator.inside) - 1) * self.rates.sample_s
            left = max(generator.inside[0][0] - generator.progress, 0.0)
            self._at(left * each_s, DONE, (index, generator.stamp))

    def _done(self, what: tuple[int, int]) -> None:
        index, stamp = what
        generator = self.generators[index]
        if stamp != generator.stamp:
            return  # somebody came or went since, so the next end is another one
        self._share(generator)
        generator.progress = max(generator.progress, generator.inside[0][0])
        ended: list[Group] = []
        while generator.inside and generator.inside[0][0] <= generator.progress + ALIKE:
            ended.append(heapq.heappop(generator.inside)[1])
        self.inside -= len(ended)
        self.occupied -= not generator.inside
        self._next_end(index)
        if generator.closed and not generator.inside:
            self._at(self.rates.adopt_s, OPENED, index)
        self.queue.extend(ended)
        self._score()

    def _follow(self, index: int) -> None:
        """Fetch the next version, if there is one and none is on its way."""
        generator = self.generators[index]
        if not generator.adopting and generator.version < self.published:
            generator.adopting = True
            self._at(self.rates.transfer_s, ARRIVED, index)

    def _arrived(self, index: int) -> None:
        generator = self.generators[index]
        generator.closed = True
        if not generator.inside:
            self._at(self.rates.adopt_s, OPENED, index)

    def _opened(self, index: int) -> None:
        generator = self.generators[index]
        self._renew(generator)
        generator.adopting = generator.closed = False
        self._loaded(index, 0)
        generator.seen = self.now
        for cursor, kept, size in generator.waiting:
            self._enter(index, cursor, kept, size)
        generator.waiting.clear()
        self._next_end(index)
        self._follow(index)
        # Receipts and steps wake the loop; a proved version it sees at its next tick.
        ticks = math.ceil((self.now - self.woke) / TICK_S - ALIKE)
        self._at(max(self.woke + ticks * TICK_S - self.now, 0.0), LOOK, None)

    def _renew(self, generator: _Generator) -> None:
        old, new = generator.version, generator.version + 1
        generator.version = new
        self.able.setdefault(new, [])
        self.holders[new] = self.holders.get(new, 0) + 1
        self.holders[old] -= 1
        if not self.holders[old]:
            del self.able[old], self.holders[old]

    # -- scorers and buffer ---------------------------------------------------------------------------------

    def _score(self) -> None:
        while self.queue and self.free_scorers:
            self.free_scorers -= 1
            self._at(self.rates.score_s, SCORED, self.queue.popleft())

    def _scored(self, group: Group) -> None:
        self.free_scorers += 1
        self._at(self.rates.delay_s, DELIVERED, group)
        self._score()

    def _delivered(self, group: Group) -> None:
        _, _, index, kept = group
        self.leased -= 1
        self._loaded(index, -1)
        if kept:
            heapq.heappush(self.buffer, group)
            self._drop_stale()
            self.buffered_max = max(self.buffered_max, len(self.buffer))
            self._seal()
        else:
            self.dropped["nothing_to_learn"] += 1
        self._wake()

    def _drop_stale(self) -> None:
        due = max(self.published, self.admission.due(self.sealed_step + 1))
        while self.buffer and due - self.buffer[0][0] > self.setup.max_lag:
            heapq.heappop(self.buffer)
            self.dropped["stale"] += 1

    # -- learner --------------------------------------------------------------------------------------------

    def _seal(self) -> None:
        count = self.setup.groups_per_step
        if self.sealed or len(self.buffer) < count or self.step == self.steps:
            return
        self.sealed_step = self.step + 1
        newest = max(self.published, self.admission.due(self.sealed_step))
        for _ in range(count):
            lag = newest - heapq.heappop(self.buffer)[0]
            self.lag_max = max(self.lag_max, lag)
            self.lags += lag
        self.counted += count
        self.sealed = count
        self._drop_stale()
        publishing = self.rates.publish_s if self.admission.publishes(self.sealed_step) else 0.0
        self._at(self.rates.step_s(self.setup.ranks) + publishing, TRAINED, None)

    def _trained(self, _: None) -> None:
        self.step += 1
        self.trained, self.sealed = self.trained + self.sealed, 0
        if self.step == self.warm:
            self.window, self.means = (self.now, self.trained), _Means()
        if self.admission.publishes(self.step):
            self.published += 1
            self._drop_stale()
            for index in range(self.setup.generators):
                self._follow(index)
        self._wake()
        self._seal()

    def _outcome(self) -> Outcome:
        means, began, before = self.means, *self.window
        span = max(self.now - began, 1e-12)
        generators, size = self.setup.generators, self.rates.group_mib
        finished = self.issued - self.leased
        return Outcome(
            steps=self.steps,
            seconds=self.now,
            groups_per_s=(self.trained - before) / span,
            steps_per_hour=3600 * (self.steps - self.warm) / span,
            learner_waits=means.waiting / span,
            generators_busy=means.occupied / span / generators,
            scorers_busy=means.scoring / span / self.setup.scorers,
            groups_inside=means.inside / span / generators,
            lag_mean=self.lags / self.counted,
            lag_max=self.lag_max,
            stale_share=self.dropped["stale"] / max(finished, 1),
            leased_mean=means.leased / span,
            leased_max=self.leased_max,
            buffered_mean=means.buffered / span,
            buffered_max=self.buffered_max,
            buffer_mib=self.buffered_max * size if size else None,
            issued=self.issued,
            trained=self.trained,
            leased=self.leased,
            buffered=len(self.buffer),
            dropped=dict(self.dropped),
        )
