"""The recount sees what it is there for: lost, trained twice, mislabelled, weights that are not their sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import checkpoints
from actors.ledger import group_id
from benchmarks.chaos.cases import light_case
from benchmarks.chaos.light import answer
from benchmarks.chaos.ranks import LOG, MASK, NAMES, SHARD, WIDTH, contribution
from benchmarks.chaos.recount import Count, recount
from pipelines.rollout import derived_seed

SEED = 5
HELD = "what the weights hash to"
PROMPTS = 6


def group(position: int) -> str:
    return group_id("chaos", str(position), 0)


def line(attempt: int, step: int, position: int) -> dict[str, Any]:
    name = group(position)
    drawn = [list(answer(HELD, derived_seed(SEED, name), sample, 6)) for sample in range(2)]
    told = {"event": "trained", "attempt": attempt, "step": step, "rank": 0, "group": name, "use": 1}
    told |= {"position": str(position), "version": 0, "digest": "d", "applied": True, "at": float(step)}
    return told | {"tokens": drawn}


def began(attempt: int, parent: int, step: int) -> dict[str, Any]:
    return {"event": "began", "attempt": attempt, "parent": parent, "step": step, "rank": 0, "at": 0.0}


def written() -> list[dict[str, Any]]:
    """Attempt 1 commits step 2 and is lost after step 3; attempt 2 goes on from step 2."""
    published = {"event": "published", "attempt": 1, "version": 0, "step": 0, "digest": "d", "held": HELD}
    first = [began(1, 0, 0), published, line(1, 1, 0), line(1, 1, 1), line(1, 2, 2), line(1, 3, 3)]
    return [*first, began(2, 1, 2), line(2, 3, 4), line(2, 4, 3)]


def count(folder: Path, lines: list[dict[str, Any]], dropped: dict[int, str]) -> Count:
    """Of a run that ended with step 4 of attempt 2, and trained positions 0 to 4."""
    light_case(folder, SEED, prompts=PROMPTS, garbage=frozenset({5})).write()
    for attempt in (1, 2):
        path = folder / LOG / f"attempt-{attempt:04d}-rank-0.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in lines if one["attempt"] == attempt))
    weights = {name: np.zeros(WIDTH, np.int64) for name in NAMES}
    for position in range(5):
        for name in NAMES:
            weights[name] = (weights[name] + contribution(group(position), 1, name)) & MASK
    partial = checkpoints.begin(folder, 4)
    np.savez(partial / SHARD.format(rank=0), allow_pickle=False, **weights)
    steps = {0: 1, 1: 1, 2: 2, 4: 3, 3: 4}
    ledger = {
        "trained": [[group(position), step, position] for position, step in steps.items()],
        "dropped": [[group(position), reason, position] for position, reason in dropped.items()],
    }
    checkpoints.commit(folder, 4, 2, {"ledger": ledger})
    return recount(folder, finished=True)


def test_a_run_that_holds_has_no_problems_and_rolled_back_work_counts_once(tmp_path: Path) -> None:
    found = count(tmp_path, written(), {5: "missing_score"})
    assert found.problems == []
    assert (found.trained, found.rolled_back, found.lost, found.twice, found.attempts) == (5, 1, 0, 0, 2)


def _lost(lines: list[dict[str, Any]]) -> None:
    lines.remove(line(1, 1, 1))


def _twice(lines: list[dict[str, Any]]) -> None:
    lines.append(line(2, 4, 0))


def _mislabelled(lines: list[dict[str, Any]]) -> None:
    lines[2]["tokens"][0][3] ^= 1


def _unpublished(lines: list[dict[str, Any]]) -> None:
    lines[4]["digest"] = "of weights that nobody published"


def _skipped(lines: list[dict[str, Any]]) -> None:
    lines[2]["applied"] = False


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_lost, ["not the sum", "differ in", "neither trained nor dropped"]),
        (_twice, ["more than once", "not the sum", "differ in"]),
        (_mislabelled, ["not of the version"]),
        (_unpublished, ["not of the version"]),
        (_skipped, ["not the sum"]),
    ],
)
def test_what_does_not_hold_is_said(tmp_path: Path, harm: Any, said: list[str]) -> None:
    lines = written()
    harm(lines)
    problems = count(tmp_path, lines, {5: "missing_score"}).problems
    for words in said:
        assert any(words in problem for problem in problems), (words, problems)


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ({}, "1 prompts are neither trained nor dropped"),
        ({5: "missing_score", 0: "missing_score"}, "prompt 0 is trained and dropped"),
    ],
)
def test_every_prompt_is_accounted_for(tmp_path: Path, dropped: dict[int, str], said: str) -> None:
    assert any(said in problem for problem in count(tmp_path, written(), dropped).problems)


def test_a_file_that_nobody_finished_is_left_behind(tmp_path: Path) -> None:
    count(tmp_path, written(), {5: "missing_score"})
    (checkpoints.root(tmp_path) / ".step-6.partial").mkdir()
    assert any("left behind" in problem for problem in recount(tmp_path, finished=True).problems)
