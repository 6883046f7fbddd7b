"""The fault matrix: every fault happens in an asserted state, is noticed, and leaves the invariants whole.

Lost, trained twice and mislabelled are counted from the logs that the learner's ranks write themselves
(`benchmarks.chaos.recount`), not from the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.chaos.catalogue import FAULTS
from benchmarks.chaos.play import LIMIT_S
from benchmarks.chaos.played import Played
from pipelines.journal import read_lines
from tests.chaos.scripts import CRASH, GARBAGE, POISON, SCRIPTS

Plays = Callable[[str], Played]
EACH = [(script, name) for script, names in SCRIPTS.items() for name in names]


@pytest.mark.parametrize(("script", "name"), EACH, ids=[name for _, name in EACH])
def test_a_fault_strikes_its_state_is_noticed_and_recovered_from(
    played: Plays, script: str, name: str
) -> None:
    [made] = [made for made in played(script).strikes if made.fault == name]
    fault = FAULTS[name]
    if fault.act in ("kill", "freeze", "again"):
        assert fault.met(made.state), f"{name} met its victim in another state: {made.state}"
    if fault.kills:
        assert made.detected_s is not None and made.detected_s < LIMIT_S
    assert made.recovered_s is not None and made.recovered_s < LIMIT_S


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_is_lost_trained_twice_or_mislabelled(played: Plays, script: str) -> None:
    one = played(script)
    assert one.problems == [] and one.missed == []
    assert (one.count.lost, one.count.twice, one.count.mislabelled) == (0, 0, 0)
    assert one.count.trained > 0


def test_a_poisoned_prompt_is_a_dead_letter_and_a_reward_that_is_no_number_is_missing(played: Plays) -> None:
    dropped = played("fleet").count.dropped
    assert dropped["dead_letter"] == len(POISON | CRASH)
    assert dropped["missing_score"] == len(GARBAGE)


def test_lost_learners_lose_less_than_a_commit_interval(played: Plays) -> None:
    """Two steps of four groups: more than that is never trained again after one loss."""
    one = played("learner")
    assert 0 < one.count.rolled_back <= 2 * 4 * one.count.attempts


def test_a_driver_that_is_asked_to_stop_says_so(played: Plays) -> None:
    ends = played("driver").ends
    assert "exit 143" in ends and "exit -9" in ends


@pytest.mark.parametrize(
    ("name", "happened"),
    [("responses", {"fault", "refused", "attempt_failed"}), ("store", {"held_back", "pressure"})],
)
def test_lost_responses_and_too_many_bytes_lose_nothing(
    strangers: Callable[[str], tuple[Played, Path]], name: str, happened: set[str]
) -> None:
    one, folder = strangers(name)
    assert happened & {event["event"] for event in read_lines(folder / "events.jsonl")}
    assert one.problems == []
    assert one.count.trained >= 60
