"""Processes that are killed, and versions that are promoted, each at its time; what was done is kept."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.chaos.beacon import started_at
from benchmarks.chaos.faults import require_death
from benchmarks.serving.chaos.checks import Tenures, Window
from benchmarks.serving.chaos.schedule import Act
from benchmarks.serving.chaos.watch import Watch, recovered, settled
from serving.registry.registry import Entry, Registry

MEET_S = 10.0  # for a replica to be seen changing over, after each of
MEETINGS = 3  # promotions
MEET_AGAIN_S = 0.02
FIND_S = 60.0  # for a living victim


@dataclass(frozen=True, kw_only=True)
class Victim:
    pid: int
    replica: str  # its name at the conductor; that of a process that is none is its Ray name


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A process that was seen alive right before the signal and gone after it."""

    at: float
    role: str
    pid: int
    replica: str
    state: str  # of the victim, as the conductor last heard


@dataclass(frozen=True, kw_only=True)
class Swap:
    at: float
    act: str
    version: str


def living(kind: str) -> list[Victim]:
    """Processes of Ray actors whose class has this name, by Ray's own table."""
    from ray._private import state

    known: Any = state.actors()
    return [
        Victim(pid=int(actor["Pid"]), replica=str(actor.get("Name")).rpartition("#")[2])
        for actor in known.values()
        if actor.get("State") == "ALIVE" and actor.get("ActorClassName", "").split(".")[-1] == kind
    ]


@dataclass
class Faults:
    """Does what a schedule says.

    Args:
        registry: where versions are promoted.
        versions: two that alternate.
        damaged: one whose files are not what was registered.
        victims: Ray's class name of the replicas.
    """

    registry: Registry
    versions: Sequence[Entry]
    damaged: Entry
    victims: str
    replicas: int
    watch: Watch
    chance: random.Random
    tenures: Tenures = field(default_factory=Tenures)
    kills: list[Kill] = field(default_factory=list[Kill])
    swaps: list[Swap] = field(default_factory=list[Swap])
    problems: list[str] = field(default_factory=list[str])

    def play(self, acts: Sequence[Act], began: float) -> None:
        """Each act at its time after `began`."""
        for act in acts:
            time.sleep(max(0.0, began + act.at - time.monotonic()))
            match act.kind:
                case "promote":
                    self._promote(self._other())
                case "promote damaged":
                    self._promote(self.damaged)
                case "roll back":
                    self._roll_back()
                case "kill":
                    self.kill(self.victims)
                case "kill swapping":
                    self._kill_swapping()
                case "kill conductor":
                    self.kill("Conductor")

    # -- versions -----------------------------------------------------------------------------------------

    def _other(self) -> Entry:
        promoted = self._promoted()
        return next(version for version in self.versions if version.id != promoted)

    def _promoted(self) -> str:
        promoted = self.registry.promoted()
        assert promoted is not None
        return promoted.id

    def _promote(self, entry: Entry) -> None:
        at = time.monotonic()
        if entry is not self.damaged:  # which is right at no time
            self.tenures.promoted(entry.id, at)
        self.registry.promote(entry.id, why="served under load", against=self._promoted())
        self.swaps.append(Swap(at=at, act="promote", version=entry.id))

    def _roll_back(self) -> None:
        at, before = time.monotonic(), self.registry.previous()
        assert before is not None
        self.tenures.promoted(before.id, at)
        self.registry.rollback("served under load")
        self.swaps.append(Swap(at=at, act="roll back", version=before.id))

    # -- kills --------------------------------------------------------------------------------------------

    def _kill_swapping(self) -> None:
        """A replica while it changes over; after a promotion in vain the next one is tried, and whoever
        serves is killed in the end."""
        for _ in range(MEETINGS):
            # Asked before: Ray takes longer to name them than a replica to change over.
            victims = {one.replica: one for one in living(self.victims)}
            self._promote(self._other())
            until = time.monotonic() + MEET_S
            while time.monotonic() < until:
                swapping = [one.replica for one in self.watch.ask() if one.state == "swapping"]
                if met := [victims[name] for name in swapping if name in victims]:
                    self._strike(self.victims, met[0], "swapping")
                    return
                time.sleep(MEET_AGAIN_S)
        self.kill(self.victims)

    def kill(self, role: str) -> None:
        """One process of the role, by chance."""
        until = time.monotonic() + FIND_S
        while not (victims := living(role)):
            if time.monotonic() > until:
                self.problems.append(f"no living {role} within {FIND_S:.0f} s")
                return
            time.sleep(0.1)
        victim = self.chance.choice(victims)
        states = {one.replica: one.state for one in self.watch.standings()}
        self._strike(role, victim, states.get(victim.replica, ""))

    def _strike(self, role: str, victim: Victim, state: str) -> None:
        born = started_at(victim.pid)
        if born is None:
            self.problems.append(f"{role} {victim.pid} was dead before it was killed")
            return
        at = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        require_death(victim.pid, born)
        self.kills.append(Kill(at=at, role=role, pid=victim.pid, replica=victim.replica, state=state))

    # -- what followed ------------------------------------------------------------------------------------

    def recoveries(self) -> list[float | None]:
        """Seconds from each kill until the conductor heard of all replicas again."""
        return [self._recovery(kill) for kill in self.kills]

    def arrivals(self) -> list[float | None]:
        """Seconds from each promotion of an undamaged version until every replica served it; None where the
        next one came first."""
        return [self._arrival(number) for number, swap in enumerate(self.swaps) if self._sound(swap)]

    def late(self) -> int:
        """Promotions that had not reached every replica when the next one came, though none was being
        replaced."""
        gone = self._replacements()
        return sum(
            self._sound(swap)
            and self._arrival(number) is None
            and not any(one.began < following and swap.at < one.ended for one in gone)
            for number, (swap, following) in enumerate(zip(self.swaps, self._followers(), strict=True))
        )

    def windows(self) -> list[Window]:
        """Of all kills, and of all swaps until they arrived or the next one came. Settles the tenures."""
        found: list[Window] = []
        for number, (swap, following) in enumerate(zip(self.swaps, self._followers(), strict=True)):
            took = self._arrival(number) if self._sound(swap) else None
            if took is not None:
                self.tenures.settled(swap.version, swap.at + took)
            found.append(_window("swap", swap.at, following - swap.at if took is None else took))
        return [*found, *self._replacements()]

    def _followers(self) -> list[float]:
        """When the swap after each one came."""
        return [*(swap.at for swap in self.swaps[1:]), math.inf]

    def _replacements(self) -> list[Window]:
        """From each kill until there were all replicas again."""
        return [
            _window("kill", kill.at, math.inf if took is None else took)
            for kill, took in zip(self.kills, self.recoveries(), strict=True)
        ]

    def _sound(self, swap: Swap) -> bool:
        return swap.version != self.damaged.id

    def _recovery(self, kill: Kill) -> float | None:
        back = recovered(self.watch.looks, kill.at, self._dead, self.replicas)
        return None if back is None else back - kill.at

    def _arrival(self, number: int) -> float | None:
        swap = self.swaps[number]
        at = settled(self.watch.looks, swap.at, swap.version, self._dead, self.replicas)
        overtaken = number + 1 < len(self.swaps) and at is not None and at > self.swaps[number + 1].at
        return None if at is None or overtaken else at - swap.at

    @property
    def _dead(self) -> dict[str, float]:
        return {kill.replica: kill.at for kill in self.kills}


def _window(cause: Literal["kill", "swap"], began: float, took: float) -> Window:
    return Window(cause=cause, began=began, ended=began + took)
