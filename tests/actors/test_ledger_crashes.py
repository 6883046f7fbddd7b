"""The ledger under everything that can happen to it, in any order."""

from __future__ import annotations

import itertools
import json
import random
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
from tests.actors.ledger_calls import Waits, counts, fault, group, now, sizes, waits


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
        self.attempt = 1
        self.ledger = Ledger("run", 1, self.sizes)
        self.cursor = self.step = 0
        self.stage_of: dict[str, int] = {}  # of each group, as its newest lease says
        self.lineage: dict[int, list[str]] = {}  # step -> ids trained, as the learner saw it
        self.tickets: dict[int, list[tuple[str, int]]] = {}  # step -> (comparison, use)
        self.snapshot: dict[str, Any] = now(self.ledger.snapshot(0))
        self.bodies: dict[str, bytes] = {}

    @rule(target=leases, epoch=st.just(0))
    def issue(self, epoch: int) -> Lease | None:
        lease = now(self.ledger.issue(f"p{self.cursor}", epoch, self.cursor, 0))
        self.cursor += 1
        return self.known(lease)

    def known(self, lease: Lease | None) -> Lease | None:
        if lease is not None:
            self.stage_of[lease.group] = lease.stage
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
        if lease is not None:
            now(self.ledger.accept(group(lease, min(version, self.step), dropped=dropped)))

    @rule(lease=consumes(leases), retry=st.booleans())
    def fail(self, lease: Lease | None, retry: bool) -> None:
        if lease is not None:
            now(self.ledger.fail(fault(lease, retry), lease))

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
        self.attempt += 1
        self.ledger = Ledger("run", self.attempt, self.sizes)
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


def test_crashes_at_random_points_lose_and_double_nothing() -> None:
    """Random crashes between any two calls; the learner's own log says what the weights have seen."""
    chance = random.Random(4)
    total, groups, steps = 0, 3, 200
    log: dict[int, list[str]] = {}
    snapshot, attempt, step, kills = None, 0, 0, 0
    while step < steps:
        attempt += 1
        ledger = Ledger("run", attempt, sizes(groups, 1, 1, steps))
        if snapshot is not None:
            now(ledger.restore(snapshot))
        step, cursor = (snapshot["step"], snapshot["next_cursor"]) if snapshot is not None else (0, 0)
        log = {at: ids for at, ids in log.items() if at <= step}
        life = chance.randrange(12) if kills < 1000 else 10**9
        for _ in range(life):
            lease = now(ledger.issue(f"p{cursor}", 0, cursor, 0))
            cursor += 1
            if lease is not None and chance.random() < 0.9:
                now(ledger.accept(group(lease, version=step)))
            elif lease is not None:
                now(ledger.fail(fault(lease, retry=False), lease))
            if step < steps and not waits(ledger.pull(attempt, step + 1, 0, 1)):
                shard = now(ledger.pull(attempt, step + 1, 0, 1))
                step += 1
                log[step] = [g.id for g in shard.groups]
                now(ledger.trained(attempt, step, {}))
                if chance.random() < 0.7:
                    snapshot = now(ledger.snapshot(step))
            if step == steps:
                break
        ledger.check()
        kills += 1
        if step == steps:
            total = now(ledger.counts())["issued"]
            settled = now(ledger.counts())
            break
    trained = [name for ids in log.values() for name in ids]
    assert len(trained) == len(set(trained)) == groups * steps == settled["trained"]
    assert total == settled["trained"] + sum(settled["dropped"].values()) and kills > 50
