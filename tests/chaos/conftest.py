"""Protocol runs under faults, each played once; the tests read what came of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.beacon import started_at
from benchmarks.chaos.cases import SETTINGS, light_case
from benchmarks.chaos.machines import Machines
from benchmarks.chaos.play import Play
from benchmarks.chaos.played import Played
from tests.chaos.scripts import CRASH, GARBAGE, POISON, RESPONSES_LOST, SCRIPTS

TEST = "PYTEST_CURRENT_TEST"


class Cluster:
    """The machines of all scripts; a lost head is replaced."""

    def __init__(self) -> None:
        self.machines = Machines()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    held = Cluster()
    yield held
    held.machines.stop()


@pytest.fixture(scope="module")
def played(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Played]:
    """Plays a script, once."""

    @cache
    def play(script: str) -> Played:
        folder = tmp_path_factory.mktemp(script)
        inputs: dict[str, Any] = {}
        if script == "fleet":
            inputs = {"poison": POISON, "crash": CRASH, "garbage": GARBAGE}
        elif script == "learner":
            inputs = {"skew_s": (3600.0, -3600.0)}
        one = Play(light_case(folder, 7, **inputs), cluster.machines, 7)
        try:
            return one.one_by_one(SCRIPTS[script])
        finally:
            cluster.machines = one.machines

    return play


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Played, Path]]:
    """Plays without strikes on clusters of their own: lost RPC responses, a small object store."""

    @cache
    def play(name: str) -> tuple[Played, Path]:
        folder: Path = tmp_path_factory.mktemp(name)
        lossy = {"RAY_testing_rpc_failure": RESPONSES_LOST} if name == "responses" else {}
        small = 80 * 2**20 if name == "store" else 100 * 2**20
        case = light_case(folder, 3)
        if name == "store":  # pictures of a megabyte, and a learner that is slower than the rollouts
            rollout = SETTINGS["rollout"] | {"buffer_mib": 4}
            lag = {"rollout": rollout, "sync": {"max_lag": 16}}
            case = light_case(folder, 3, settings=lag, image=600, backward_s=0.15)
        machines = Machines(workers=0, cpus=16, store_bytes=small, environment=lossy)
        try:
            return Play(case, machines, 3).one_by_one(()), folder
        finally:
            machines.stop()

    return play


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What a module started is gone when it ends, and so is what it told processes to come."""
    before, told = _children(), dict(os.environ)
    yield
    left = _children() - before
    assert not {pid for pid in left if started_at(pid) is not None}
    assert {k: v for k, v in os.environ.items() if k != TEST} == {k: v for k, v in told.items() if k != TEST}


def _children() -> set[int]:
    task = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for one in task.iterdir() for pid in (one / "children").read_text().split()}
