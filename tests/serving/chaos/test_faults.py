"""What is concluded from promotions, kills and what the conductor heard."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.serving.chaos.faults import Faults, Kill, Swap
from benchmarks.serving.chaos.watch import Look
from serving.wire import Standing

A, B = "v-aaaaaaaaaaaa", "v-bbbbbbbbbbbb"


def look(at: float, *replicas: tuple[str, str]) -> Look:
    standings = tuple(
        Standing(replica=name, slot="stable", version=version, state="serving", in_flight=0)
        for name, version in replicas
    )
    return Look(at=at, standings=standings)


def played(looks: list[Look], swaps: list[tuple[float, str]], kills: list[tuple[float, str]]) -> Faults:
    return Faults(
        registry=cast("Any", None),
        versions=(),
        damaged=cast("Any", SimpleNamespace(id="v-damaged")),
        victims="Replica",
        replicas=2,
        watch=cast("Any", SimpleNamespace(looks=looks)),
        chance=random.Random(0),
        swaps=[Swap(at=at, act="promote", version=version) for at, version in swaps],
        kills=[Kill(at=at, role="Replica", pid=1, replica=name, state="serving") for at, name in kills],
    )


SLOW = [look(1, ("r1", A), ("r2", A)), look(11, ("r1", B), ("r2", A)), look(31, ("r1", A), ("r2", A))]
DEAD = [look(1, ("r1", A), ("r2", A)), look(11, ("r1", B)), look(25, ("r1", A), ("r3", A))]


@pytest.mark.parametrize(
    ("looks", "swaps", "kills", "late"),
    [
        ([look(12, ("r1", B), ("r2", B))], [(10, B)], [], 0),
        (SLOW, [(10, B), (30, A)], [], 1),  # r2 never had it
        (SLOW, [(10, "v-damaged"), (30, A)], [], 0),  # nobody is to have it
        (DEAD, [(10, B), (20, A)], [(9, "r2")], 0),  # there was one replica until 25
        (DEAD, [(10, B), (20, A)], [(24, "r2")], 1),  # killed after its time was up
    ],
    ids=["arrived", "slow", "damaged", "dead meanwhile", "dead later"],
)
def test_a_promotion_is_late_unless_a_replica_was_being_replaced(
    looks: list[Look], swaps: list[tuple[float, str]], kills: list[tuple[float, str]], late: int
) -> None:
    assert played(looks, swaps, kills).late() == late
