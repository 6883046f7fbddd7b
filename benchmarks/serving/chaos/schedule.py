"""What is done when. Drawn from nothing but the durations, so that lanes of every length hold all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "kill swapping", "kill conductor", "promote", "roll back", "promote damaged"]

SWAPS = ("promote", "roll back")
SWAP_AT, KILL_AT, CONDUCTOR_AT = 0.05, 0.6, 0.9  # shares of the interval at which each comes
# Shares of the interval between kills: damaged files are promoted so long before a kill and taken back so
# long after it, and no other swap comes then or so shortly before and after.
DAMAGED_BEFORE, DAMAGED_AFTER, QUIET = 0.1, 0.3, 0.1


@dataclass(frozen=True, order=True)
class Act:
    at: float  # seconds from the start
    kind: Kind


def schedule(seconds: float, kill_every: float, swap_every: float) -> list[Act]:
    """A kill and a swap per interval, apart from each other but for every third swap, which the next kill
    meets; every third is a rollback. Once the conductor is killed, and once damaged files are promoted around
    a kill and taken back."""
    kills = _times(seconds, kill_every, KILL_AT)
    acts: list[Act] = []
    met: set[float] = set()
    for number, at in enumerate(_times(seconds, swap_every, SWAP_AT)):
        free = [kill for kill in kills if kill > at and kill not in met]
        if number % 3 == 2 and free:
            met.add(free[0])
            acts.append(Act(free[0], "kill swapping"))
        else:
            acts.append(Act(at, "roll back" if number % 3 == 1 else "promote"))
    plain = [kill for kill in kills if kill not in met]
    acts += [Act(kill, "kill") for kill in plain]
    if plain:
        began, ended = plain[-1] - DAMAGED_BEFORE * kill_every, plain[-1] + DAMAGED_AFTER * kill_every
        quiet = QUIET * kill_every
        acts = [act for act in acts if act.kind not in SWAPS or not began - quiet <= act.at <= ended + quiet]
        acts += [Act(began, "promote damaged"), Act(ended, "roll back")]
        acts.append(Act(CONDUCTOR_AT * kill_every, "kill conductor"))
    return sorted(acts)


def _times(seconds: float, every: float, share: float) -> list[float]:
    return [every * (number + share) for number in range(int(seconds // every))]
