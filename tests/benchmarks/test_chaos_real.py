"""What the kills of real processes take for noticed and for recovered, on journals written by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.chaos.played import replaced
from benchmarks.chaos.real import Kill, RealRun
from pipelines.journal import Journal

AT = 200.0  # seconds ago
STEP = {"event": "stage_seconds", "step": 7}
FAILED = {"event": "attempt_failed"}
GONE = {"event": "member", "state": "gone", "pid": 17}


@pytest.fixture
def run(tmp_path: Path) -> RealRun:
    return RealRun(tmp_path, (), deadline_s=150.0, seed=0)


def struck(run: RealRun, role: str, *told: tuple[float, dict[str, object]]) -> tuple[float | None, ...]:
    """Seconds after the kill until it was noticed, and until the run trained again."""
    kill = Kill(role=role, signal="SIGSTOP", pid=17, seen={}, at=time.time() - AT)
    journal = Journal(run.folder / "events.jsonl")
    for after, event in told:
        journal.append({**event, "at": kill.at + after})
    journal.close()
    run._recover(kill)
    return kill.detected_s, kill.recovered_s


def test_a_step_that_ends_before_the_death_of_a_rank_is_noticed_proves_nothing(run: RealRun) -> None:
    told = ((-5.0, FAILED), (0.1, STEP), (61.0, FAILED), (104.0, STEP), (110.0, STEP))
    assert struck(run, "rank", *told) == (61.0, 104.0)
    assert run.problems == []


def test_a_pool_that_trains_on_has_recovered_before_the_death_is_noticed(run: RealRun) -> None:
    told = ((-1.0, STEP), (0.4, STEP), (2.0, GONE | {"pid": 18}), (10.0, GONE))
    assert struck(run, "generator", *told) == (10.0, 0.4)
    assert run.problems == []


def test_what_nobody_notices_and_a_run_that_trains_no_more_are_named(run: RealRun) -> None:
    assert struck(run, "rank", (0.1, STEP)) == (None, 0.1)
    assert struck(run, "ledger", (0.2, STEP), (0.3, FAILED)) == (0.3, None)
    assert run.problems == [
        "rank SIGSTOP (pid 17): nobody noticed",
        "ledger SIGSTOP: nothing was trained within 150 s",
    ]


def test_a_new_process_replaces_a_killed_one_whatever_its_index() -> None:
    def serves(at: float, pid: int, index: int, role: str = "generator") -> dict[str, object]:
        return {"event": "member", "state": "serving", "at": at, "pid": pid, "index": index, "role": role}

    told = [serves(1.0, 17, 0), serves(2.0, 18, 1), serves(9.0, 30, 0), serves(11.0, 18, 1)]
    told += [serves(12.0, 40, 0, "scorer"), serves(14.0, 31, 1), serves(15.0, 32, 2)]
    assert replaced(told, "generator", 10.0) == 4.0
    assert replaced(told, "generator", 15.0) is None
