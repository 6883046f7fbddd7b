"""Leases under way: until when they may take, and what becomes of a group whose lease fails."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.loop import LedgerState, Verdict
from pipelines.types import Fault, Group, Lease

# A shared worker was taken away on purpose, or there was none: no evidence against the group.
BLAMELESS = frozenset({"generator_left", "aborted_for_sync", "quarantined", "no_scorer", "no_perturber"})
PATIENCE = 10  # faults of all kinds in place of one try: nothing is issued for ever
EXPIRED = "lease_expired"
SHOWN = 20  # leases that a report lists


@dataclass
class Entry:
    """A group that is not settled yet."""

    lease: Lease
    prompt: str  # its id
    since: float  # when the lease was issued, by the ledger's clock
    alone: bool = False  # nothing else is under way beside the lease
    verdict: Verdict | None = None  # its last lease is void, and this is what becomes of the group
    faults: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    group: Group | None = None
    size: int = 0  # bytes of the group

    @property
    def waiting(self) -> bool:
        """Whether it waits to be issued again."""
        return self.verdict is not None

    @property
    def tries(self) -> int:
        """Failed leases that speak against the group."""
        return _distinct(self._against)

    @property
    def proofs(self) -> int:
        """Failed leases that prove something against the group: what a worker lived to tell, and deaths of
        the role that died most often while nothing else was under way. Workers also die by themselves, and
        where many do, a lone group meets every one of those deaths; but it is not always the same role."""
        told = [fault for fault in self._against if not _is_death(fault)]
        alone = [fault for fault in self._against if _is_death(fault) and fault["alone"]]
        deaths = [
            _distinct(fault for fault in alone if fault["role"] == role)
            for role in {fault["role"] for fault in alone}
        ]
        return len(told) + max(deaths, default=0)

    @property
    def _against(self) -> list[dict[str, Any]]:
        return [fault for fault in self.faults if fault["reason"] not in BLAMELESS]

    @property
    def story(self) -> str:
        """All that failed, for people."""
        return " | ".join("{role}: {reason}: {detail}".format(**fault) for fault in self.faults)

    def evidence(self) -> dict[str, Any]:
        """All that is known of a group that is given up."""
        lease = self.lease
        return {"group": lease.group, "prompt": self.prompt, "cursor": lease.cursor, "faults": self.faults}

    @property
    def held(self) -> Group:
        assert self.group is not None, f"{self.lease} was not delivered"
        return self.group

    def renew(self, lease: Lease, since: float) -> None:
        self.alone = self.verdict == "alone"
        self.lease, self.since, self.verdict = lease, since, None

    def void(self, fault: Fault, max_tries: int, when: float) -> Verdict:
        """The lease failed. The last try is made alone, and repeated while there is no proof: whoever shares
        a worker with a group that kills it collects faults as well, and must not be convicted with it."""
        self.faults.append(
            {
                "role": fault.role,
                "reason": fault.reason,
                "detail": fault.detail,
                "retry": fault.retry,
                "generator": self.lease.generator,
                "fence": self.lease.fence,
                "alone": self.alone,
                "when": round(when, 3),
            }
        )
        tries = self.tries
        proved = tries if max_tries == 1 else self.proofs
        if not fault.retry or proved >= max_tries or len(self.faults) >= PATIENCE * max_tries:
            self.verdict = "drop"
        else:
            self.verdict = "alone" if 0 < max_tries - 1 <= tries else "again"
        return self.verdict


@dataclass
class Deadlines:
    """Finds leases that take too long. `clock`: monotonic seconds."""

    lease_s: float
    clock: Callable[[], float] = time.monotonic
    _issued: deque[tuple[float, Lease]] = field(default_factory=deque[tuple[float, Lease]])  # oldest first

    def watch(self, entry: Entry) -> None:
        self._issued.append((entry.since, entry.lease))

    def overdue(self, leased: Mapping[str, Entry]) -> list[Entry]:
        """Entries whose lease is to be voided; each comes up once."""
        found: list[Entry] = []
        while self.oldest_s(leased) > self.lease_s:
            _, lease = self._issued.popleft()
            found.append(leased[lease.group])
        return found

    def oldest_s(self, leased: Mapping[str, Entry]) -> float:
        """Age of the oldest lease under way; 0 without any."""
        while self._issued and not _under_way(self._issued[0][1], leased):
            self._issued.popleft()
        return self.clock() - self._issued[0][0] if self._issued else 0.0


def _is_death(fault: Mapping[str, Any]) -> bool:
    return fault["reason"].endswith("_died")


def _distinct(faults: Iterable[Mapping[str, Any]]) -> int:
    """A worker dies once, however often it is met: until its death is noticed, every lease that is sent to
    it fails with the same words."""
    dead = [_dead_actor(fault) for fault in faults]
    return dead.count(None) + len({actor for actor in dead if actor is not None})


def _dead_actor(fault: Mapping[str, Any]) -> str | None:
    """The id of the actor whose death made a lease fail (`actors.remote.cause_of_death`)."""
    found = re.search(r"\[actor (\w+)\]", fault["detail"]) if _is_death(fault) else None
    return found[1] if found else None


def _under_way(lease: Lease, leased: Mapping[str, Entry]) -> bool:
    entry = leased.get(lease.group)
    return entry is not None and entry.lease.fence == lease.fence and not entry.waiting


def report_of(state: LedgerState, leased: Mapping[str, Entry], now: float) -> dict[str, Any]:
    """The leases under way for people: the oldest of them, and how many groups wait to be issued again."""
    under_way = sorted((e for e in leased.values() if not e.waiting), key=lambda e: e.since)
    shown = [
        {
            "group": entry.lease.group,
            "prompt": entry.prompt,
            "cursor": entry.lease.cursor,
            "generator": entry.lease.generator,
            "fence": entry.lease.fence,
            "age_s": round(now - entry.since, 3),
            "tries": entry.tries,
            "faults": len(entry.faults),
        }
        for entry in under_way[:SHOWN]
    ]
    return {
        "phase": state.phase,
        "stage": state.stage,
        "held_bytes": state.held_bytes,
        "oldest_lease_s": round(state.oldest_lease_s, 3),
        "leases": shown,
        "under_way": len(under_way),
        "waiting": len(leased) - len(under_way),
    }
