"""The ledger's books: in which place every group is. Pure bookkeeping; the ledger decides who moves when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.types import Group, Lease

WINDOW = 100  # groups over which the share of one drop reason is taken
KEPT = ""  # the outcome of a group that is not dropped
END_OF_RUN = "end_of_run"  # a drop for which nobody is to blame: the run had all that it needs
STAGE_OVER = "stage_over"  # the same of a stage
HINTS = {
    "tie": "all answers to a prompt score the same; use more samples, a higher temperature or a finer reward",
    "missing_score": "the reward fails or returns nothing for most answers",
    "stale": "answers arrive after too many syncs; raise sync.max_lag or lower rollout.max_tokens",
    "dead_letter": "every retry failed",
}


@dataclass
class Entry:
    """A group that is not settled yet."""

    lease: Lease
    waiting: bool = False  # its last lease failed: it waits to be issued again
    faults: list[str] = field(default_factory=list[str])
    group: Group | None = None

    @property
    def held(self) -> Group:
        assert self.group is not None, f"{self.lease} was not delivered"
        return self.group


@dataclass
class Accounts:
    """Every group is in exactly one place; the keys are group ids."""

    leased: dict[str, Entry] = field(default_factory=dict[str, Entry])
    buffered: dict[str, Entry] = field(default_factory=dict[str, Entry])
    sealed: dict[str, Entry] = field(default_factory=dict[str, Entry])  # the step under training, in order
    trained: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])  # step, cursor
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])  # reason, cursor
    released: dict[str, int] = field(default_factory=dict[str, int])  # cursor
    tally: Counter[str] = field(default_factory=Counter[str])  # issued, retried, late, duplicate
    frontier: int = 0  # first cursor that was never issued

    @property
    def live(self) -> int:
        return len(self.leased) + len(self.buffered) + len(self.sealed)

    def is_settled(self, name: str) -> bool:
        return name in self.trained or name in self.dropped

    def open(self, lease: Lease) -> None:
        """A new lease: of a new group, or of one whose last lease failed."""
        self.frontier = max(self.frontier, lease.cursor + 1)
        known = self.leased.get(lease.group)
        if known is not None:
            known.lease, known.waiting = lease, False
            return
        self.leased[lease.group] = Entry(lease)
        self.tally["issued"] += 1

    def train(self, step: int) -> None:
        self.trained.update({name: (step, entry.lease.cursor) for name, entry in self.sealed.items()})
        self.sealed.clear()

    def release(self) -> None:
        for entries in (self.leased, self.buffered, self.sealed):
            self.released.update({name: entry.lease.cursor for name, entry in entries.items()})
            entries.clear()

    def counts(self) -> dict[str, Any]:
        return {
            "issued": self.tally["issued"],
            "trained": len(self.trained),
            "leased": len(self.leased),
            "buffered": len(self.buffered),
            "sealed": len(self.sealed),
            "dropped": self.drops(),
            "released": len(self.released),
            "retried": self.tally["retried"],
            "late": self.tally["late"],
            "duplicate": self.tally["duplicate"],
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
