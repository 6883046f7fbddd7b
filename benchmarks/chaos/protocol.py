"""A thousand mixed kills over many short seeded runs of light workers: nothing lost, nothing trained twice.

Each run has its own schedule, drawn from its seed; the schedules and all strikes are in the result. Exit code
1 on any violation, or when the kills do not fit into the time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import light_case
from benchmarks.chaos.catalogue import FAULTS
from benchmarks.chaos.driver import Case
from benchmarks.chaos.machines import Machines
from benchmarks.chaos.play import Play
from benchmarks.chaos.played import Played, write

GAP_S = 0.4  # between two faults, on average
STRIKING_S = 90.0  # of a run; it then has 60 s to end
RUNS_PER_CLUSTER = 8
VARIANTS = ("plain", "skewed clocks", "bad inputs", "big pictures")


def schedule(seed: int, count: int) -> list[str]:
    """Names of `count` faults, drawn by their shares."""
    pool = list(FAULTS.values())
    drawn = random.Random(seed).choices(pool, [fault.share for fault in pool], k=count)
    return [fault.name for fault in drawn]


def case_of(variant: str, folder: Path, seed: int) -> Case:
    chance = random.Random(seed + 1)
    if variant == "skewed clocks":
        return light_case(folder, seed, skew_s=(3600.0, -3600.0))
    if variant == "bad inputs":
        bad = chance.sample(range(60), 4)
        return light_case(
            folder, seed, poison=frozenset(bad[:1]), crash=frozenset(bad[1:2]), garbage=frozenset(bad[2:])
        )
    if variant == "big pictures":
        return light_case(folder, seed, image=160)
    return light_case(folder, seed)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos protocol", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--faults-per-run", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=44.0)
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    options = parser.parse_args(arguments)
    began, played, variants = time.monotonic(), list[Played](), list[str]()
    machines: Machines | None = None
    try:
        while sum(one.kills for one in played) < options.kills:
            if time.monotonic() - began > 60 * options.minutes:
                break
            number = len(played)
            if machines is not None and (number % RUNS_PER_CLUSTER == 0 or played[-1].problems):
                machines.stop()
                machines = None
            machines = machines or Machines()
            seed, variant = options.seed + number, VARIANTS[number % len(VARIANTS)]
            folder = options.out / "protocol" / f"run-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            play = Play(case_of(variant, folder.absolute(), seed), machines, seed)
            one = play.mixed(schedule(seed, options.faults_per_run), GAP_S, STRIKING_S)
            machines = play.machines
            played.append(one)
            variants.append(variant)
            print(_line(one, variant, sum(each.kills for each in played), began), flush=True)
            if not one.problems:
                shutil.rmtree(folder)
    finally:
        if machines is not None:
            machines.stop()
    result = summary(played, variants, options.kills, time.monotonic() - began)
    write(options.out / "protocol.json", result | {"runs": [one.to_json() for one in played]})
    print(table(result))
    return 1 if result["violations"] else 0


def _line(one: Played, variant: str, kills: int, began: float) -> str:
    minutes = (time.monotonic() - began) / 60
    verdict = "; ".join(one.problems) or "holds"
    return (
        f"run {one.seed} ({variant}): {one.kills} kills in {one.seconds:.0f} s, "
        f"{one.count.attempts} attempts, "
        f"{one.count.trained} trained, {one.count.rolled_back} rolled back; {verdict} "
        f"[{kills} kills, {kills / max(minutes, 0.01):.0f} a minute]"
    )


def summary(played: Sequence[Played], variants: Sequence[str], wanted: int, seconds: float) -> dict[str, Any]:
    """Totals over all runs, and per fault how fast it was noticed and recovered from."""
    by_fault: dict[str, list[Any]] = defaultdict(list)
    for one in played:
        for made in one.strikes:
            by_fault[made.fault].append(made)
    kills = sum(one.kills for one in played)
    violations = [f"run {one.seed}: {problem}" for one in played for problem in one.problems]
    if kills < wanted:
        violations.append(f"{kills} of {wanted} kills fitted into the time")
    return {
        "kills": kills,
        "strikes": sum(len(one.strikes) for one in played),
        "runs_played": len(played),
        "variants": dict(Counter(variants)),
        "trained": sum(one.count.trained for one in played),
        "rolled_back": sum(one.count.rolled_back for one in played),
        "lost": sum(one.count.lost for one in played),
        "twice": sum(one.count.twice for one in played),
        "mislabelled": sum(one.count.mislabelled for one in played),
        "hangs": sum("stacks:" in problem for one in played for problem in one.problems),
        "dropped": dict(sum((one.count.dropped for one in played), Counter[str]())),
        "named_ends": dict(Counter(end[:120] for one in played for end in one.ends)),
        "not_met": dict(Counter(name for one in played for name in one.missed)),
        "longest_run_s": round(max((one.seconds for one in played), default=0.0), 1),
        "minutes": round(seconds / 60, 2),
        "faults": {name: _times(by_fault.get(name, [])) for name in FAULTS},
        "violations": violations,
    }


def _times(strikes: Sequence[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"count": len(strikes)}
    for name in ("detected_s", "recovered_s"):
        values = sorted(getattr(made, name) for made in strikes if getattr(made, name) is not None)
        if values:
            row[name] = {
                "median": round(statistics.median(values), 2),
                "p95": round(values[min(len(values) - 1, int(0.95 * len(values)))], 2),
                "max": round(values[-1], 2),
            }
    return row


def table(result: dict[str, Any]) -> str:
    head = f"{'fault':<26}{'state':<44}{'n':>5}{'seen':>8}{'max':>7}{'back':>8}{'p95':>7}{'max':>7}"
    lines = [head, "-" * len(head)]
    for name, row in result["faults"].items():
        seen, back = row.get("detected_s", {}), row.get("recovered_s", {})
        cells = [
            seen.get("median", ""),
            seen.get("max", ""),
            *(back.get(k, "") for k in ("median", "p95", "max")),
        ]
        lines.append(
            f"{name:<26}{FAULTS[name].state[:42]:<44}{row['count']:>5}"
            + "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, (8, 7, 8, 7, 7), strict=True))
        )
    lines.append(
        f"{result['kills']} kills in {result['runs_played']} runs and {result['minutes']} minutes: "
        f"{result['lost']} lost, {result['twice']} trained twice, {result['mislabelled']} mislabelled, "
        f"{result['hangs']} hangs; {result['trained']} groups trained, {result['rolled_back']} rolled back"
    )
    lines += [f"VIOLATION {violation}" for violation in result["violations"]]
    return "\n".join(lines)
