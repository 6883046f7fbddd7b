"""Rollout throughput follows 1 -> 3 -> 1 generators of a running run.

Light workers: a generator decodes two requests at a time with emulated service times, so that the machine's
cores do not decide. `--real`: vLLM processes, which share the cores; what counts is the ledger's truth.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import SETTINGS, light_case
from benchmarks.chaos.machines import Machines
from benchmarks.chaos.play import Play
from benchmarks.chaos.played import write
from benchmarks.chaos.real import RealRun
from benchmarks.chaos.recount import lines
from pipelines import control
from pipelines.journal import read_lines

SIZES = (1, 3, 1)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos resize", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="at each size")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    options = parser.parse_args(arguments)
    out: Path = options.out.absolute()
    result = real(out, options.seconds) if options.real else light(out, options.seconds)
    write(out / ("resize-real.json" if options.real else "resize.json"), result)
    label = "real vLLM, shared cores" if options.real else "light workers, emulated service times"
    for size, rate in result["groups_per_s"]:
        print(f"{size} generators: {rate:.2f} groups/s ({label})")
    for problem in result["problems"]:
        print(f"VIOLATION {problem}")
    return 1 if result["problems"] else 0


def light(out: Path, seconds: float) -> dict[str, Any]:
    folder = out / "resize"
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "rollout": SETTINGS["rollout"] | {"generators": 1, "max_generators": 3},
        "sync": {"max_lag": 16},
    }
    case = light_case(folder, 1, settings=settings, slots=2, token_s=0.04, backward_s=0.01)
    machines = Machines(workers=0, cpus=16)
    rates: list[tuple[int, float]] = []
    try:
        play = Play(case, machines, 1)

        def trained() -> list[float]:
            return [line["at"] for line in lines(folder) if line["event"] == "trained"]

        played = play.during(lambda: rates.extend(_rates(folder, seconds, trained, time.monotonic)))
    finally:
        machines.stop()
    return {"groups_per_s": rates, "problems": played.problems, "count": vars(played.count) | {"at": []}}


def real(out: Path, seconds: float) -> dict[str, Any]:
    run = RealRun(out, ("rollout.generators=1", "rollout.max_generators=3"), 300.0, 1)

    def trained() -> list[float]:
        events = read_lines(run.folder / "events.jsonl")
        return [e["at"] for e in events if e["event"] == "seal" for _ in e["groups"]]

    rates: list[tuple[int, float]] = []
    found = run.during(lambda: rates.extend(_rates(run.folder, seconds, trained, time.time)))
    return {"groups_per_s": rates, "problems": run.problems, "count": found}


def _rates(
    folder: Path, seconds: float, trained: Callable[[], list[float]], now: Callable[[], float]
) -> list[tuple[int, float]]:
    """Groups a second at each size, from when so many serve."""
    rates: list[tuple[int, float]] = []
    for size in SIZES:
        control.write_request(folder, {"generator": size})
        _await(folder, size)
        began = now()
        time.sleep(seconds)
        ended = now()
        rates.append((size, sum(began <= at < ended for at in trained()) / (ended - began)))
    return rates


def _await(folder: Path, size: int, patience_s: float = 300.0) -> None:
    until = time.monotonic() + patience_s
    while (serving := control.read_status(folder)["fleet"]["pools"]["generator"]["serving"]) != size:
        if time.monotonic() > until:
            raise TimeoutError(f"{serving} generators serve after {patience_s:g} s, {size} were asked for")
        time.sleep(0.2)
