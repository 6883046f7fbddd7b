"""The producer on Ray: chooses a scorer, awaits only its receipt, and turns every failure into data."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from actors.partners import Partners
from actors.remote import reach
from pipelines.loop import Parcel, RoleFailed
from pipelines.scaling import Role
from pipelines.types import Fault, Lease, Receipt

SHUN_S = 2.0  # a scorer that just failed is least busy; without this it would draw every lease
LOOK_S = 0.05  # how often it looks for a scorer while there is none


class Roster(Protocol):
    """Who works at the moment: the fleet."""

    def generator(self, index: int) -> Any:
        """Raises RoleFailed when it is gone."""
        ...

    def serving(self, role: Role) -> Mapping[int, Any]: ...

    def lost(self, role: Role, index: int, why: str) -> None:
        """Somebody saw this one die."""
        ...

    def amended(self, fault: Fault, generator: int) -> Fault:
        """The fault of a lease, seen with what is known of why its generator went."""
        ...


class RayProducer:
    """Spreads leases over the scorers that serve, and tells each with whom it works.

    `timeout_s`: deadline of one lease; it covers waiting at the generator's gate during a weight sync.
    """

    def __init__(self, roster: Roster, ledger: Any, timeout_s: float) -> None:
        self._roster, self._ledger, self._timeout_s = roster, ledger, timeout_s
        self._load: Counter[int] = Counter()
        self._shunned: dict[int, float] = {}  # scorer -> until when, by the monotonic clock

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        try:
            perturbers = await serving(self._roster, "perturber", self._timeout_s)
            index, scorer = await self._choose()
            partners = Partners(
                generator=self._roster.generator(lease.generator),
                perturbers=tuple(perturbers.values()),
                ledger=self._ledger,
            )
            outcome = await self._ask(index, scorer, lease, parcel, partners)
        except RoleFailed as error:
            outcome = error.fault(lease.group)
        if not isinstance(outcome, Fault):
            return outcome
        fault = self._roster.amended(outcome, lease.generator)
        if fault.reason == "generator_died":
            self._roster.lost("generator", lease.generator, fault.detail)
        elif fault.reason == "perturber_died":
            for member in _dead(self._roster.serving("perturber"), fault.detail):
                self._roster.lost("perturber", member, fault.detail)
        return fault

    async def _ask(
        self, index: int, scorer: Any, lease: Lease, parcel: Parcel, partners: Partners
    ) -> Receipt | Fault:
        self._load[index] += 1
        try:
            return await reach(scorer, "scorer", self._timeout_s).produce(lease, parcel, partners)
        except RoleFailed as error:
            self._shunned[index] = time.monotonic() + SHUN_S
            if error.reason == "scorer_died":
                self._roster.lost("scorer", index, error.detail)
            raise
        finally:
            self._load[index] -= 1

    async def _choose(self) -> tuple[int, Any]:
        """The scorer with the fewest leases."""
        scorers = await serving(self._roster, "scorer", self._timeout_s)
        now = time.monotonic()
        best = min(scorers, key=lambda i: (self._shunned.get(i, 0.0) > now, self._load[i], i))
        return best, scorers[best]


async def serving(roster: Roster, role: Role, timeout_s: float) -> Mapping[int, Any]:
    """Who serves; waits while there is nobody. Raises RoleFailed at the deadline."""
    until = time.monotonic() + timeout_s
    while not (members := roster.serving(role)):
        if time.monotonic() > until:
            raise RoleFailed(f"no_{role}", role, f"none served for {timeout_s:g} s")
        await asyncio.sleep(LOOK_S)
    return members


def _dead(members: Mapping[int, Any], detail: str) -> list[int]:
    """Those that Ray's account of a death names: a scorer saw it, which does not know their numbers."""
    named_ones = {index: getattr(handle, "_actor_id", None) for index, handle in members.items()}
    return [index for index, known in named_ones.items() if known is not None and known.hex() in detail]
