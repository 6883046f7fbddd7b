"""What the conductor hears of the replicas, several times a second, and what follows from it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from serving.wire import Standing

LOOK_S = 0.1
CALL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Look:
    at: float  # monotonic
    standings: tuple[Standing, ...]


#: Replica -> when it was killed.
Dead = Mapping[str, float]


def recovered(looks: Sequence[Look], after: float, dead: Dead, replicas: int) -> float | None:
    """When so many replicas served again."""
    for look in looks:
        serving = [one for one in _living(look, dead) if one.state == "serving"]
        if look.at > after and len(serving) >= replicas:
            return look.at
    return None


def settled(looks: Sequence[Look], after: float, version: str, dead: Dead, replicas: int) -> float | None:
    """When so many replicas served a version, and nobody another."""
    for look in looks:
        living = _living(look, dead)
        everybody = all((one.version, one.state) == (version, "serving") for one in living)
        if look.at > after and everybody and len(living) >= replicas:
            return look.at
    return None


def refusing(looks: Sequence[Look], version: str) -> set[str]:
    """The replicas that ever said that they cannot change over to it."""
    return {one.replica for look in looks for one in look.standings if version in one.refused}


def _living(look: Look, dead: Dead) -> list[Standing]:
    """The conductor remembers replicas for a while that are gone."""
    return [one for one in look.standings if dead.get(one.replica, math.inf) > look.at]


def closed(looks: Sequence[Look]) -> list[float]:
    """Seconds that each change-over kept a replica's gate closed; those of replicas that started are none."""
    first: dict[str, str] = {}
    found: dict[tuple[str, str, float], float] = {}
    for look in looks:
        for one in look.standings:
            if one.state != "serving" or one.version is None:
                continue
            begun = first.setdefault(one.replica, f"{one.version} {one.closed_s}")
            if f"{one.version} {one.closed_s}" != begun:
                found[one.replica, one.version, one.closed_s] = one.closed_s
    return list(found.values())


@dataclass
class Watch:
    """Looks from a thread of its own until it is stopped."""

    conductor: Any
    looks: list[Look] = field(default_factory=list[Look])

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def standings(self) -> tuple[Standing, ...]:
        """As of the last look."""
        return self.looks[-1].standings if self.looks else ()

    def ask(self) -> tuple[Standing, ...]:
        """As of now; nothing while the conductor is being restarted."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            return tuple(ray.get(self.conductor.standings.remote(), timeout=CALL_S))
        return ()

    def _look_on(self) -> None:
        while not self._end.wait(LOOK_S):
            if found := self.ask():
                self.looks.append(Look(at=time.monotonic(), standings=found))
