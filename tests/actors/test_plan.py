"""The plan of the next attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import checkpoints
from actors.plan import Plan
from actors.tickets import BODIES
from pipelines.journal import Journal
from pipelines.settings import Settings


def plan(run_dir: Path, attempt: int = 1) -> Plan:
    nothing: dict = dict.fromkeys(("recipe", "source", "inventory", "model"))
    return Plan(settings=Settings(), run_dir=run_dir, canaries=(), attempt=attempt, **nothing)


def commit(run_dir: Path, step: int, attempt: int = 1, bodies: bytes = b"") -> Path:
    folder = checkpoints.begin(run_dir, step)
    (folder / "weights").write_bytes(b"w" * step)
    if bodies:
        (folder / BODIES).write_bytes(bodies)
    ledger = {"step": step, "dropped": [["g1", "tie", 4]]}
    return checkpoints.commit(run_dir, step, attempt, {"ledger": ledger})


def test_without_a_checkpoint_the_next_attempt_begins_anew(tmp_path: Path) -> None:
    after = plan(tmp_path).renewed()
    assert (after.attempt, after.step, after.resumed, after.ledger) == (2, 0, None, {})


def test_it_goes_on_from_the_newest_checkpoint_that_verifies(tmp_path: Path) -> None:
    good, bad = commit(tmp_path, 2, bodies=b"npz"), commit(tmp_path, 4)
    (bad / "weights").write_bytes(b"v" * 4)
    after = plan(tmp_path).renewed()
    assert (after.attempt, after.step, after.resumed) == (2, 2, good)
    assert after.ledger[BODIES] == b"npz" and after.settled_drops() == {"g1": "tie"}
    [rejected] = after.rejected
    assert "step-4/weights" in rejected and bad.exists()


def test_numbers_of_attempts_are_never_used_again(tmp_path: Path) -> None:
    commit(tmp_path, 2, attempt=3)
    assert plan(tmp_path).renewed().attempt == 4
    events = Journal(tmp_path / "events.jsonl")
    events.write("resumed", attempt=7, step=2)  # it died before it committed
    events.close()
    assert plan(tmp_path).renewed().attempt == 8
    assert plan(tmp_path, attempt=9).renewed().attempt == 10


def test_nothing_that_verifies_is_an_error(tmp_path: Path) -> None:
    (commit(tmp_path, 2) / "weights").unlink()
    with pytest.raises(checkpoints.BadCheckpoint, match="weights: it is missing"):
        plan(tmp_path).renewed()
