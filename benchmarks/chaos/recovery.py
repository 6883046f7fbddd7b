"""How fast a run recovers, per role, and what kills cost: goodput against a clean run on the same machine.

Light workers: numpy weights and emulated service times, so this is the protocol's own cost; a real process
has to import torch and load a model first (`--real` takes those times from `benchmarks.chaos real`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import SETTINGS, light_case
from benchmarks.chaos.machines import Machines
from benchmarks.chaos.play import Play
from benchmarks.chaos.played import Played, replaced, write
from pipelines.journal import read_lines

ROLES = {
    "generator": ("generator-mid-rollout", "generator-mid-adopt"),
    "generator, frozen": ("generator-frozen",),
    "scorer": ("scorer-judging", "scorer-delivering"),
    "perturber": ("perturber-busy",),
    "learner rank": ("rank-backward", "rank-allreduce", "rank-saving"),
    "ledger": ("ledger-dead",),
    "publisher": ("publisher-dead",),
    "driver": ("driver-killed",),
    "node": ("node-removed",),
}
PERIODS_S = (30.0, 10.0)  # between two kills
MIXED = tuple(name for role, names in ROLES.items() if role not in ("driver", "node") for name in names)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos recovery", description=__doc__)
    parser.add_argument("--each", type=int, default=10, help="kills of each role")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each goodput run")
    parser.add_argument("--rounds", type=int, default=3, help="of goodput runs, each with a seed of its own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", type=Path, help="build/chaos/real.json")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    options = parser.parse_args(arguments)
    folder: Path = options.out.absolute() / "recovery"
    shutil.rmtree(folder, ignore_errors=True)
    machines = Machines()
    result: dict[str, Any] = {"light": {}, "goodput": {}, "problems": []}
    try:
        for standbys in (0, 1):
            played, machines = recoveries(folder / f"standbys-{standbys}", machines, options, standbys)
            result["light"][f"{standbys} standbys"] = times(played, folder / f"standbys-{standbys}")
            result["problems"] += played.problems
        found, machines = windows(folder, machines, options)
        result["goodput"] = {name: goodput(each, found["clean"]) for name, each in found.items()}
        result["problems"] += [each for plays in found.values() for one in plays for each in one.problems]
    finally:
        machines.stop()
    if options.real is not None:
        result["real"] = real_times(json.loads(options.real.read_text()))
    write(options.out / "recovery.json", result)
    print(table(result))
    return 1 if result["problems"] else 0


def recoveries(folder: Path, machines: Machines, options: Any, standbys: int) -> tuple[Played, Machines]:
    rollout = SETTINGS["rollout"] | {"standbys": standbys}
    case = light_case(folder, options.seed, settings={"rollout": rollout})
    play = Play(case, machines, options.seed)
    cycle = [names[turn % len(names)] for turn in range(options.each) for names in ROLES.values()]
    return play.one_by_one(cycle), play.machines


def windows(folder: Path, machines: Machines, options: Any) -> tuple[dict[str, list[Played]], Machines]:
    """What was struck -> a run of each round. Those of a round follow each other, with one seed."""
    found = defaultdict[str, list[Played]](list)
    for turn in range(options.rounds):
        for period in (None, *PERIODS_S):
            name = f"a kill every {period:g} s" if period else "clean"
            case = light_case(folder / f"{name.replace(' ', '-')}-{turn}", options.seed + turn)
            play = Play(case, machines, options.seed + turn)
            found[name].append(play.every(period or 0.0, options.seconds, MIXED if period else ()))
            machines = play.machines
    return found, machines


def goodput(found: Sequence[Played], clean: Sequence[Played]) -> dict[str, Any]:
    """Of each round, and as a share of the clean window of the same round."""
    return {
        "groups_per_s": [round(one.goodput, 2) for one in found],
        "share": [round(one.goodput / other.goodput, 3) for one, other in zip(found, clean, strict=True)],
        "kills": [one.kills for one in found],
    }


def times(played: Played, folder: Path) -> dict[str, Any]:
    """Per role: kill to the next trained group, and kill to as many serving members as before."""
    events = list(read_lines(folder / "events.jsonl"))
    of = {name: role for role, names in ROLES.items() for name in names}
    trained, whole = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for made in played.strikes:
        role = of[made.fault]
        if made.recovered_s is not None:
            trained[role].append(made.recovered_s)
        if (serving := replaced(events, made.role, made.wall)) is not None:
            whole[role].append(serving)
    return {
        role: {"trained_again_s": _spread(trained[role]), "serving_again_s": _spread(whole[role])}
        for role in ROLES
    }


def real_times(found: dict[str, Any]) -> dict[str, Any]:
    values = defaultdict[str, list[float]](list)
    for kill in found["kills"]:
        if kill["recovered_s"] is not None:
            values[f"{kill['role']} {kill['signal']}"].append(kill["recovered_s"])
    return {role: {"trained_again_s": _spread(seconds)} for role, seconds in values.items()}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"n": len(ordered), "median": round(statistics.median(ordered), 2), "p95": round(p95, 2)}


def table(result: dict[str, Any]) -> str:
    lines = ["kill -> next trained group, and -> somebody else serves in that role; seconds, median / p95"]
    for label, roles in {**result["light"], **({"real": result["real"]} if "real" in result else {})}.items():
        lines.append(f"[{'real processes' if label == 'real' else f'light workers, {label}'}]")
        for role, row in roles.items():
            cells = [row.get("trained_again_s"), row.get("serving_again_s")]
            shown = [f"{c['median']} / {c['p95']} (n={c['n']})" if c else "-" for c in cells]
            lines.append(f"  {role:<22}{shown[0]:<28}{shown[1]}")
    lines.append("[goodput, light workers with emulated service times]")
    for name, row in result["goodput"].items():
        rates, shares = row["groups_per_s"], row["share"]
        lines.append(
            f"  {name:<22}{statistics.median(rates)} groups/s ({min(rates)} to {max(rates)}), "
            f"{statistics.median(shares):.1%} of clean ({min(shares):.1%} to {max(shares):.1%}), "
            f"{sum(row['kills'])} kills in {len(rates)} windows"
        )
    return "\n".join([*lines, *(f"VIOLATION {problem}" for problem in result["problems"])])
