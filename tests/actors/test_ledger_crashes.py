"""The ledger under everything that can happen to it, in any order."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from actors.ledger import Ledger
from actors.tickets import BODIES
from pipelines.loop import RunFailed
from pipelines.types import Lease
from tests.actors.ledger_calls import Clock, Waits, counts, fault, group, now, sizes, waits

LEASE_S = 5.0
MAX_TRIES = 3


class Books(RuleBasedStateMachine):
    """Everything that can happen, in any order; the truth is kept in plain sets outside the ledger."""

    leases = Bundle("leases")

    @initialize(
        groups=st.integers(1, 4),
        lag=st.integers(0, 2),
        sync_every=st.integers(1, 2),
        lasts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        uses=st.integers(1, 2),
        replay=st.sampled_from([0.0, 0.4]),
    )
    def begin(
        self, groups: int, lag: int, sync_every: int, lasts: list[int], uses: int, replay: float
    ) -> None:
        ends = itertools.accumulate(lasts)
        self.sizes = sizes(groups, sync_every, lag, *ends, uses=uses, replay=replay)
        self.lag = lag
        self.attempt = 0
        self.clock = Clock()
        self.group_of: dict[int, str] = {}  # of each fence
        self.dead: set[int] = set()  # fences that are void
        self.begin_attempt()
        self.cursor = self.step = 0
        self.stage_of: dict[str, int] = {}  # of each group, as its newest lease says
        self.lineage: dict[int, list[str]] = {}  # step -> ids trained, as the learner saw it
        self.tickets: dict[int, list[tuple[str, int]]] = {}  # step -> (comparison, use)
        self.snapshot: dict[str, Any] = now(self.ledger.snapshot(0))
        self.bodies: dict[str, bytes] = {}

    def begin_attempt(self) -> None:
        self.attempt += 1
        self.dead |= self.group_of.keys()
        self.tries: Counter[str] = Counter()
        self.ledger = Ledger(
            "run", self.attempt, self.sizes, max_tries=MAX_TRIES, lease_s=LEASE_S, clock=self.clock
        )

    @rule(target=leases, epoch=st.just(0))
    def issue(self, epoch: int) -> Lease | None:
        lease = now(self.ledger.issue(f"p{self.cursor}", epoch, self.cursor, 0))
        self.cursor += 1
        return self.known(lease)

    def known(self, lease: Lease | None) -> Lease | None:
        if lease is not None:
            self.stage_of[lease.group] = lease.stage
            self.group_of[lease.fence] = lease.group
        return lease

    @rule(target=leases, lease=leases)
    def issue_again(self, lease: Lease | None) -> Lease | None:
        if lease is None or lease.fence >> 32 != self.attempt:
            return None
        try:
            return self.known(now(self.ledger.issue(f"p{lease.cursor}", 0, lease.cursor, 1)))
        except ValueError:
            return None

    @rule(lease=leases, version=st.integers(0, 6), dropped=st.sampled_from([None, None, "tie"]))
    def accept(self, lease: Lease | None, version: int, dropped: str | None) -> None:
        if lease is None:
            return
        before = counts(self.ledger)
        receipt = now(self.ledger.accept(group(lease, min(version, self.step), dropped=dropped)))
        if lease.fence in self.dead:
            assert not receipt.accepted and self.places() == {name: before[name] for name in self.places()}

    @rule(lease=consumes(leases), retry=st.booleans(), reason=st.sampled_from(["timeout", "generator_left"]))
    def fail(self, lease: Lease | None, retry: bool, reason: str) -> None:
        if lease is None:
            return
        before, known = counts(self.ledger), lease.fence in self.dead
        verdict = now(self.ledger.fail(fault(lease, retry, reason), lease))
        if lease.fence >> 32 != self.attempt:
            assert verdict == "drop" and self.places() == {name: before[name] for name in self.places()}
        if verdict != "drop":
            self.tries[lease.group] += not known and reason == "timeout"
            self.dead.add(lease.fence)
            assert verdict == ("alone" if self.tries[lease.group] == MAX_TRIES - 1 else "again")
        assert now(self.ledger.fail(fault(lease), lease)) == verdict  # whoever asks again

    @rule(seconds=st.sampled_from([1.0, LEASE_S, 2 * LEASE_S]))
    def pass_time(self, seconds: float) -> None:
        """Leases that take too long are void; a delivery comes too late."""
        self.clock.now += seconds
        state = now(self.ledger.state())
        assert state.oldest_lease_s <= LEASE_S
        for fence in state.expired - self.dead:
            assert fence >> 32 == self.attempt
            self.tries[self.group_of[fence]] += 1
        self.dead |= state.expired

    def places(self) -> dict[str, Any]:
        found = counts(self.ledger)
        return {
            name: found[name] for name in ("issued", "leased", "buffered", "sealed", "trained", "dropped")
        }

    @rule(world=st.integers(1, 3))
    def train(self, world: int) -> None:
        try:
            shards = [
                now(self.ledger.pull(self.attempt, self.step + 1, rank, world)) for rank in range(world)
            ]
        except (Waits, RunFailed):
            return
        if shards[0].stop:
            assert all(shard.stop for shard in shards)
            return
        handed = [g for shard in shards for g in shard.groups]
        taken = [g for g in handed if g.use == 1]
        self.step += 1
        assert self.step <= self.sizes.max_steps and 0 < len(taken) <= self.sizes.groups_per_step
        assert all(self.sizes.due(self.step) - g.version <= self.lag for g in taken)
        stage = self.sizes.stage_at(self.step)
        assert all(self.stage_of[g.id] == stage for g in handed)
        self.lineage[self.step] = [g.id for g in taken]
        self.tickets[self.step] = [(c.id, g.use) for g in handed for c in g.comparisons]
        now(self.ledger.trained(self.attempt, self.step, {}))

    @rule()
    def publish(self) -> None:
        now(self.ledger.published(self.sizes.due(self.step + 1)))

    @rule()
    def commit(self) -> None:
        snapshot = now(self.ledger.snapshot(self.step))
        self.bodies = {BODIES: snapshot.pop(BODIES)} if BODIES in snapshot else {}
        self.snapshot = json.loads(json.dumps(snapshot))

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """A crash, or a stop with release: the next attempt continues from the last commit."""
        if clean:
            now(self.ledger.release())
            self.ledger.check()
            assert now(self.ledger.state()).live == 0
        self.begin_attempt()
        now(self.ledger.restore(self.snapshot | self.bodies))
        self.step = self.snapshot["step"]
        self.tickets = {step: uses for step, uses in self.tickets.items() if step <= self.step}
        self.lineage = {step: ids for step, ids in self.lineage.items() if step <= self.step}
        self.cursor = self.snapshot["next_cursor"]

    @precondition(lambda self: self.cursor > 3)
    @rule()
    def finish(self) -> None:
        now(self.ledger.finish())

    @invariant()
    def conserves(self) -> None:
        if not hasattr(self, "ledger"):
            return
        found = counts(self.ledger)
        places = ("leased", "buffered", "sealed", "trained", "released")
        assert found["issued"] == sum(found[place] for place in places) + sum(found["dropped"].values())
        trained = [name for ids in self.lineage.values() for name in ids]
        assert len(trained) == len(set(trained)) == found["trained"]
        tickets = [ticket for uses in self.tickets.values() for ticket in uses]
        assert len(tickets) == len(set(tickets))
        for uses in self.tickets.values():
            assert len({name for name, _ in uses}) == len(uses)
        again = found.get("later_uses", {"trained": 0})
        assert sum(use > 1 for _, use in tickets) == again["trained"]


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


class Life:
    """One attempt in which deliveries, failures, hanging leases and zombies of older attempts are mixed."""

    def __init__(self, chance: random.Random, ledger: Ledger, cursor: int, zombies: list[Lease]) -> None:
        self.chance, self.ledger, self.cursor, self.zombies = chance, ledger, cursor, zombies
        self.hung: list[Lease] = []

    def work(self, step: int, clock: Clock) -> None:
        """One lease, and what becomes of older ones."""
        clock.now += 1
        lease = now(self.ledger.issue(f"p{self.cursor}", 0, self.cursor, 0))
        self.cursor += 1
        luck = self.chance.random()
        if lease is not None and luck < 0.8:
            self.deliver(lease, step)
        elif lease is not None and luck < 0.9:
            now(self.ledger.fail(fault(lease, retry=False), lease))
        elif lease is not None:
            self.hung.append(lease)
        if self.zombies and self.chance.random() < 0.3:
            lease = self.chance.choice(self.zombies[-4:])
            assert not now(self.ledger.accept(group(lease, version=step))).accepted
            assert now(self.ledger.fail(fault(lease), lease)) == "drop"
        for lease in [one for one in self.hung if one.fence in now(self.ledger.state()).expired]:
            self.hung.remove(lease)
            self.zombies.append(lease)  # it delivers later
            if now(self.ledger.fail(fault(lease), lease)) != "drop":
                renewed = now(self.ledger.issue(f"p{lease.cursor}", 0, lease.cursor, 1))
                assert renewed.fence > lease.fence
                self.deliver(renewed, step)

    def deliver(self, lease: Lease, step: int) -> None:
        now(self.ledger.accept(group(lease, version=step)))

    def die(self) -> None:
        self.zombies += self.hung
        self.ledger.check()


def test_crashes_at_random_points_lose_and_double_nothing() -> None:
    """Random crashes between any two calls; the learner's own log says what the weights have seen."""
    chance, clock = random.Random(4), Clock()
    groups, steps = 3, 200
    log: dict[int, list[str]] = {}
    snapshot, attempt, step = None, 0, 0
    zombies: list[Lease] = []
    seen: Counter[str] = Counter()
    while step < steps:
        attempt += 1
        ledger = Ledger("run", attempt, sizes(groups, 1, 1, steps), lease_s=LEASE_S, clock=clock)
        if snapshot is not None:
            now(ledger.restore(snapshot))
        step, cursor = (snapshot["step"], snapshot["next_cursor"]) if snapshot is not None else (0, 0)
        log = {at: ids for at, ids in log.items() if at <= step}
        life = Life(chance, ledger, cursor, zombies)
        for _ in range(chance.randrange(25)):
            life.work(step, clock)
            if not waits(ledger.pull(attempt, step + 1, 0, 1)):
                shard = now(ledger.pull(attempt, step + 1, 0, 1))
                step += 1
                log[step] = [g.id for g in shard.groups]
                now(ledger.trained(attempt, step, {}))
                if chance.random() < 0.7:
                    snapshot = now(ledger.snapshot(step))
            if step == steps:
                break
        life.die()
        found = counts(ledger)
        seen.update({name: found[name] for name in ("expired", "fenced", "rolled_back")})
    trained = [name for ids in log.values() for name in ids]
    assert len(trained) == len(set(trained)) == groups * steps == found["trained"]
    assert found["issued"] == found["trained"] + sum(found["dropped"].values())
    assert attempt > 50 and min(seen[name] for name in ("expired", "fenced", "rolled_back")) > 10
