"""The ledger's books: in which place every group is. Pure bookkeeping; the ledger decides who moves when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.leases import Entry
from pipelines.types import Group, Lease, Receipt

WINDOW = 100  # groups over which the share of one drop reason is taken
KEPT = ""  # the outcome of a group that is not dropped
END_OF_RUN = "end_of_run"  # a drop for which nobody is to blame: the run had all that it needs
STAGE_OVER = "stage_over"  # the same of a stage
# What did not change any group's place, and how often it happened.
TALLIES = (
    "retried",  # leases issued again
    "blameless",  # faults that were no try
    "expired",  # leases that the ledger voided itself
    "late",  # messages about a group that is settled or unknown
    "duplicate",  # a message that came before
    "fenced",  # a message under a void fence
    "rolled_back",  # a message of another attempt
    "held_back",  # times that the loop issued nothing because too many bytes were buffered
)
HINTS = {
    "tie": "all answers to a prompt score the same; use more samples, a higher temperature or a finer reward",
    "missing_score": "the reward fails or returns nothing for most answers",
    "stale": "answers arrive after too many syncs; raise sync.max_lag or lower rollout.max_tokens",
    "dead_letter": "every retry failed",
}


@dataclass
class Accounts:
    """Every group is in exactly one place; the keys are group ids."""

    leased: dict[str, Entry] = field(default_factory=dict[str, Entry])
    buffered: dict[str, Entry] = field(default_factory=dict[str, Entry])
    sealed: dict[str, Entry] = field(default_factory=dict[str, Entry])  # the step under training, in order
    trained: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])  # step, cursor
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])  # reason, cursor
    released: dict[str, int] = field(default_factory=dict[str, int])  # cursor
    fences: dict[str, int] = field(default_factory=dict[str, int])  # under which this attempt took a delivery
    tally: Counter[str] = field(default_factory=Counter[str])  # issued, and `TALLIES`
    frontier: int = 0  # first cursor that was never issued

    @property
    def live(self) -> int:
        return len(self.leased) + len(self.buffered) + len(self.sealed)

    @property
    def held_bytes(self) -> int:
        return sum(entry.size for entry in self.buffered.values())

    def is_settled(self, name: str) -> bool:
        return name in self.trained or name in self.dropped

    def open(self, lease: Lease, prompt: str, since: float) -> Entry:
        """A new lease: of a new group, or of one whose last lease failed."""
        self.frontier = max(self.frontier, lease.cursor + 1)
        known = self.leased.get(lease.group)
        if known is not None:
            known.renew(lease, since)
            self.tally["retried"] += 1
            return known
        self.leased[lease.group] = entry = Entry(lease, prompt, since)
        self.tally["issued"] += 1
        return entry

    def buffer(self, group: Group) -> None:
        """A delivered group waits for its step."""
        entry = self.leased.pop(group.id)
        entry.group, entry.size = owned(group), weigh(group)
        self.buffered[group.id] = entry

    def void(self, name: str, fence: int) -> str | None:
        """Why a message about a group under this fence changes nothing, as `TALLIES` names it; None: it is
        of the lease under way."""
        entry = self.leased.get(name)
        if entry is not None and entry.lease.fence == fence and not entry.waiting:
            return None
        taken = self.fences.get(name)
        if taken is not None or entry is not None:
            return "duplicate" if taken == fence else "fenced"
        return "late"

    def receipt(self, name: str, fence: int, facts: Mapping[str, float] | None = None) -> Receipt:
        """What became of a delivery; the same however often it is made."""
        if self.fences.get(name) != fence:
            return Receipt(group=name, accepted=False)
        reason, _ = self.dropped.get(name, (None, 0))
        return Receipt(group=name, accepted=reason is None, dropped=reason, facts=dict(facts or {}))

    def seal(self, count: int) -> list[Entry]:
        """Take the oldest `count` of the buffered groups for a step, in the order of their prompts."""
        oldest = sorted(self.buffered.values(), key=lambda e: (e.held.version, e.lease.cursor))
        chosen = sorted(oldest[:count], key=lambda e: e.lease.cursor)
        for entry in chosen:
            self.sealed[entry.lease.group] = self.buffered.pop(entry.lease.group)
        return chosen

    def train(self, step: int) -> None:
        self.trained.update({name: (step, entry.lease.cursor) for name, entry in self.sealed.items()})
        self.sealed.clear()

    def release(self) -> list[str]:
        """Give up all that is not settled; the ids."""
        given: dict[str, int] = {}
        for entries in (self.leased, self.buffered, self.sealed):
            given.update({name: entry.lease.cursor for name, entry in entries.items()})
            entries.clear()
        self.released.update(given)
        return [*given]

    def counts(self) -> dict[str, Any]:
        return {
            "issued": self.tally["issued"],
            "trained": len(self.trained),
            "leased": len(self.leased),
            "buffered": len(self.buffered),
            "sealed": len(self.sealed),
            "dropped": self.drops(),
            "released": len(self.released),
            **{name: self.tally[name] for name in TALLIES},
        }

    def drops(self) -> dict[str, int]:
        return dict(Counter(reason for reason, _ in self.dropped.values()))

    def check(self) -> None:
        """Assert conservation, and that no group is in two places."""
        places: Sequence[Mapping[str, Any]] = (self.leased, self.buffered, self.sealed)
        places = (*places, self.trained, self.dropped, self.released)
        names = [name for place in places for name in place]
        assert len(names) == len(set(names)), "a group is in two places"
        assert len(names) == self.tally["issued"], (
            f"issued {self.tally['issued']}, accounted for {len(names)}"
        )
        for name, entry in (*self.buffered.items(), *self.sealed.items()):
            assert entry.held.fence == entry.lease.fence == self.fences[name], (
                f"{name} is held under a void fence"
            )
        assert all(entry.group is None for entry in self.leased.values()), "a leased group has been delivered"
        assert not self.fences.keys() & self.leased.keys(), "a delivered group is leased"

    def logical(self, step: int) -> dict[str, Any]:
        """Group -> (step, position in it) of what is trained up to `step`, and why others are dropped."""
        place: Counter[int] = Counter()
        trained: dict[str, list[int]] = {}
        for name, (at, _) in self.trained.items():  # of each step in the order in which it was sealed
            if at <= step:
                trained[name] = [at, place[at]]
                place[at] += 1
        dropped = {name: reason for name, (reason, _) in self.dropped.items() if reason != END_OF_RUN}
        return {"trained": trained, "dropped": dropped}

    def snapshot(self, step: int) -> dict[str, Any]:
        """What is settled by step `step`, and the first cursor from which anything is not."""
        undone = [cursor for at, cursor in self.trained.values() if at > step]
        undone += [cursor for reason, cursor in self.dropped.values() if reason == END_OF_RUN]
        undone += self.released.values()
        for entries in (self.leased, self.buffered, self.sealed):
            undone += [entry.lease.cursor for entry in entries.values()]
        trained = [[name, at, cursor] for name, (at, cursor) in self.trained.items() if at <= step]
        dropped = [[name, reason, cursor] for name, (reason, cursor) in self.dropped.items()]
        return {
            "step": step,
            "next_cursor": min(undone, default=self.frontier),
            "trained": trained,
            "dropped": [drop for drop in dropped if drop[1] != END_OF_RUN],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.trained = {name: (step, cursor) for name, step, cursor in snapshot["trained"]}
        self.dropped = {name: (reason, cursor) for name, reason, cursor in snapshot["dropped"]}
        self.tally["issued"] = len(self.trained) + len(self.dropped)
        self.frontier = snapshot["next_cursor"]


@dataclass
class DropWatch:
    """Notices that most of what is produced is dropped for one reason."""

    max_share: float
    outcomes: deque[str] = field(default_factory=lambda: deque[str](maxlen=WINDOW))

    def kept(self) -> None:
        """Count an accepted group at once: drops between two steps must not look like all there is."""
        self.outcomes.append(KEPT)

    def withdrawn(self) -> None:
        """An accepted group is dropped after all."""
        if KEPT in self.outcomes:
            self.outcomes.remove(KEPT)

    def dropped(self, reason: str, detail: str) -> str | None:
        """Count a drop; the reason to stop the run if there have been too many."""
        self.outcomes.append(reason)
        count = self.outcomes.count(reason)
        if count / WINDOW <= self.max_share:
            return None
        advice = HINTS.get(reason, "read the drops in events.jsonl")
        return (
            f"{count} of the last {WINDOW} groups were dropped for {reason!r}, more than "
            f"max_drop_share={self.max_share:g} allows: {advice}"
            + (f"; the last: {detail}" if detail else "")
        )


class News:
    """A revision that grows with every change, and a way to wait for one."""

    def __init__(self) -> None:
        self.revision = 0
        self._wake = asyncio.Event()

    def tell(self) -> None:
        """Something changed: wake everybody who waits."""
        self.revision += 1
        self._wake.set()
        self._wake = asyncio.Event()

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `holds()`; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            try:
                await asyncio.wait_for(self._wake.wait(), deadline - time.monotonic())
            except TimeoutError:
                return holds()
        return True


def owned(group: Group) -> Group:
    """The group with its arrays copied: what came through shared memory goes with its owner."""
    media = {key: replace(item, payload=np.array(item.payload)) for key, item in group.media.items()}
    return replace(group, media=media)


def weigh(group: Group) -> int:
    """About how many bytes a group holds: its media, and 8 for each number of a list."""
    media = sum(item.payload.nbytes for item in group.media.values())
    numbers = 0
    for comparison in group.comparisons:
        numbers += sum(len(r.tokens) + len(r.targets or ()) for r in comparison.responses)
        numbers += sum(len(c.behaviour.logps) for c in comparison.candidates if c.behaviour is not None)
        spans = [pair for edge in comparison.preferences for pair in edge.spans.values()]
        numbers += sum(len(side) for pair in spans for side in pair)
    return media + 8 * numbers
