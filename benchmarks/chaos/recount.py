"""Counts a protocol run again from what its ranks wrote, without asking the ledger.

The ranks' logs say what each attempt trained; where an attempt began says which older steps are in the
lineage of the last checkpoint. The ledger's own books are only compared with that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors import checkpoints
from actors.ledger import group_id
from benchmarks.chaos.beacon import living
from benchmarks.chaos.driver import OUTCOMES, Case
from benchmarks.chaos.light import ENOUGH, answer
from benchmarks.chaos.ranks import LOG, MASK, NAMES, SHARD, WIDTH, contribution
from pipelines.journal import read_lines
from pipelines.rollout import derived_seed

BLAMELESS = ("dead_letter", "missing_score")  # of inputs that the case made bad on purpose


@dataclass
class Count:
    """What a run did with its groups; `problems` is empty where every invariant holds."""

    trained: int = 0
    lost: int = 0
    twice: int = 0
    rolled_back: int = 0  # trained in an attempt that was lost, and again later
    dropped: Counter[str] = field(default_factory=Counter[str])
    mislabelled: int = 0
    attempts: int = 0
    steps: int = 0
    at: list[float] = field(default_factory=list[float])  # when each group of the lineage was trained
    problems: list[str] = field(default_factory=list[str])


def lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What all ranks of all attempts wrote."""
    for path in sorted((run_dir / LOG).glob("*.jsonl")):
        yield from read_lines(path)


def recount(run_dir: Path, *, finished: bool) -> Count:
    """`finished`: the run went on to the end of its data, so that every prompt must be accounted for."""
    case, count = Case.read(run_dir), Count()
    written = list(lines(run_dir))
    found = checkpoints.newest_verified(run_dir)
    count.attempts = len({line["attempt"] for line in written})
    if found is None:
        if finished:
            count.problems.append("the run ended without a checkpoint")
        return count
    count.steps = found.step
    lineage = _lineage(written, int(found.manifest["attempt"]), found.step)
    every = [line for line in written if line["event"] == "trained"]
    count.rolled_back = len(every) - len(lineage)
    count.at = sorted(line["at"] for line in lineage)
    _once(count, lineage)
    _weights(count, found.path, lineage)
    _labels(count, case, written, every)
    _ledger(count, found.manifest["ledger"], lineage)
    if finished:
        _conserved(count, case, found.manifest["ledger"], lineage)
    _clean(count, run_dir)
    return count


def _lineage(written: list[dict[str, Any]], attempt: int, step: int) -> list[dict[str, Any]]:
    """Lines of the steps that lead to `step` of `attempt`: its own, then those of where it began."""
    began = {line["attempt"]: line for line in written if line["event"] == "began"}
    kept: list[dict[str, Any]] = []
    while attempt:
        first = began[attempt]["step"]
        kept += [
            line
            for line in written
            if line["event"] == "trained" and line["attempt"] == attempt and first < line["step"] <= step
        ]
        attempt, step = began[attempt]["parent"], first
    return kept


def _once(count: Count, lineage: list[dict[str, Any]]) -> None:
    uses = Counter((line["group"], line["use"]) for line in lineage)
    twice = [group for (group, _), times in uses.items() if times > 1]
    count.trained, count.twice = len(uses), len(twice)
    if twice:
        count.problems.append(f"trained more than once: {twice[:5]}")


def _weights(count: Count, folder: Path, lineage: list[dict[str, Any]]) -> None:
    """The checkpoint's weights are the sum of what the lineage says it was trained on."""
    expected = {name: np.zeros(WIDTH, np.int64) for name in NAMES}
    for line in lineage:
        if line["applied"]:
            for name in NAMES:
                expected[name] = (expected[name] + contribution(line["group"], line["use"], name)) & MASK
    for path in sorted(folder.glob(SHARD.format(rank="*"))):
        with np.load(path, allow_pickle=False) as saved:
            odd = [name for name in NAMES if not np.array_equal(saved[name], expected[name])]
        if odd:
            count.problems.append(f"{path.name}: {odd} are not the sum of what was trained")


def _labels(count: Count, case: Case, written: list[dict[str, Any]], every: list[dict[str, Any]]) -> None:
    """Every trained answer was sampled by the weights that its digest names, whole."""
    published = {(line["version"], line["digest"]): line for line in written if line["event"] == "published"}
    seed = int(case.settings.get("seed", 0))
    for line in every:
        source = published.get((line["version"], line["digest"]))
        drawn = {
            answer(source["held"], derived_seed(seed, line["group"]), sample, case.world.tokens)
            for sample in range(2)
            if source is not None
        }
        if {tuple(tokens) for tokens in line["tokens"]} != drawn:
            count.mislabelled += 1
    if count.mislabelled:
        count.problems.append(f"{count.mislabelled} answers are not of the version that they name")


def _ledger(count: Count, snapshot: Mapping[str, Any], lineage: list[dict[str, Any]]) -> None:
    """The manifest's trained groups are those of the lineage, at the same steps."""
    told = {(name, step) for name, step, *_ in snapshot["trained"]}
    logged = {(line["group"], line["step"]) for line in lineage if line["use"] == 1}
    if told != logged:
        count.problems.append(f"the manifest and the ranks' logs differ in {sorted(told ^ logged)[:5]}")


def _conserved(count: Count, case: Case, snapshot: Mapping[str, Any], lineage: list[dict[str, Any]]) -> None:
    """Every prompt was trained, or dropped for a reason that the case gives it."""
    trained = {line["group"] for line in lineage}
    dropped = {name: reason for name, reason, *_ in snapshot["dropped"]}
    bad = case.world.poison | case.world.crash | case.world.garbage
    run = case.settings["name"]
    end = case.world.run_dir / ENOUGH
    prompts = int(end.read_text()) if end.exists() else case.world.prompts
    for position in range(prompts):
        name = group_id(run, str(position), 0)
        reason = dropped.get(name)
        if reason is not None:
            count.dropped[reason] += 1
        if name in trained and reason is not None:
            count.problems.append(f"prompt {position} is trained and dropped as {reason!r}")
        elif name not in trained and reason is None:
            count.lost += 1
        elif reason in BLAMELESS and position not in bad:
            count.problems.append(f"prompt {position} is good and was dropped as {reason!r}")
    if count.lost:
        count.problems.append(f"{count.lost} prompts are neither trained nor dropped")


def _clean(count: Count, run_dir: Path) -> None:
    """No process and no half-written checkpoint outlives the run."""
    if alive := living(run_dir):
        count.problems.append(f"still alive: {[(seen.role, seen.pid) for seen in alive]}")
    if partial := list(checkpoints.root(run_dir).glob("*.partial")):
        count.problems.append(f"left behind: {[path.name for path in partial]}")


def outcomes(run_dir: Path) -> list[dict[str, Any]]:
    """How each driver of the run began and ended, in order."""
    return list(read_lines(run_dir / OUTCOMES))
