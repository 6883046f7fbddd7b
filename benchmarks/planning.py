"""Is the planner's simulation right? Predicted against measured, at small size.

    python -m benchmarks.planning flow     the real loop, ledger and gates in one process, emulated times
    python -m benchmarks.planning light    the same over Ray, with real fleet, attempts and weight transfer
    python -m benchmarks.planning real     `plumbline align` with real engines and a real learner

Rates of `light` and `real` come from the first run of the lane alone; the other runs differ from it in the
number of generators and the lag. Those of `flow` are what it emulates. Rows are written to build/planning/.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos.driver import Case, LightMakers, LightRun, plan_of
from benchmarks.chaos.light import LightGenerator, World
from benchmarks.emulation import EMULATED, FLOW_STEPS, FLOWS, flow
from pipelines.journal import read_lines
from pipelines.planning.rates import finished, measured
from pipelines.planning.simulation import Outcome, Setup, simulate

OUT = Path("build/planning")
SEED = 1
SEEDS = 5  # of simulations, for the spread of a prediction
MORE_S = 0.01  # emulated: what a token takes longer for each other group on the generator
SHAPE = 4.0  # of the gamma distribution of sizes: spread 0.5
LIGHT = ((1, 2), (2, 2), (3, 2), (2, 0))  # generators, max_lag
REAL = ((1, 1), (2, 1), (1, 0))


class BatchingGenerator(LightGenerator):
    """Decodes all its groups together: the more there are, the longer a token takes for each."""

    async def health(self) -> dict[str, Any]:
        return await super().health() | {"load": self._gate.load.to_json()}

    async def _decode(self, prompt: Any, n: int, seed: int) -> Any:
        size = random.Random(seed).gammavariate(SHAPE, 1 / SHAPE)
        for _ in range(self.world.tokens):
            await asyncio.sleep(size * (self.world.token_s + MORE_S * (self._gate.inside - 1)))
            self._steps += 1
        assert self._held is not None
        version, held = self._held
        return tuple(self._rollout(prompt, version, held, seed, sample) for sample in range(n))


class Makers(LightMakers):
    def generator(self, index: int) -> Any:
        return self._make(BatchingGenerator, index, num_cpus=1)


class MeasuredRun(LightRun):
    """Notes what generators have done, as `actors.run.Run`."""

    makers = Makers

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        self._busy(name)
        yield
        self._busy(name)

    def _busy(self, name: str) -> None:
        attempt = self.attempts.now
        if name == "align" and attempt is not None:
            loads = self.fleet.loads("generator")
            self.events.write("busy", generators=loads, scorers={}, finished=finished(attempt.report))


def light(run_dir: Path, generators: int, max_lag: int) -> Setup:
    import ray

    groups, steps = 8, 40
    settings = {
        "name": "planning",
        "reward": "random",
        "data": {"source": "rows.jsonl"},
        "seed": SEED,
        "rollout": {"generators": generators, "scorers": 1, "max_tokens": 6},
        "learner": {"steps": steps, "groups_per_step": groups},
        "sync": {"max_lag": max_lag},
        "checkpoint": {"every": 1000},
        "evaluation": {"scenes": 0, "questions": 0},
    }
    world = World(
        run_dir=run_dir,
        prompts=10_000,
        token_s=0.05,
        damage_s=0.001,
        score_s=0.001,
        backward_s=0.4,
        load_s=0.05,
    )
    case = Case(world=world, settings=settings, health_s=4.0, progress_s=10.0, lease_s=60.0)
    case.write()
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        asyncio.run(MeasuredRun(plan_of(case, resume=False), case).execute())
    finally:
        ray.shutdown()
    return Setup(generators=generators, groups_per_step=groups, max_lag=max_lag)


def real(run_dir: Path, generators: int, max_lag: int) -> Setup:
    groups = 12
    given = [
        f"rollout.generators={generators}",
        f"sync.max_lag={max_lag}",
        f"learner.groups_per_step={groups}",
        "learner.steps=24",
        "checkpoint.every=1000",
        "evaluation={scenes: 0, questions: 0}",
        f"seed={SEED}",
        f"name={run_dir.name}",
        f"output={run_dir.parent}",
    ]
    command = [sys.executable, "-m", "pipelines.cli", "align", *given]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Setup(generators=generators, groups_per_step=groups, max_lag=max_lag)


def seen(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Groups per second and the learner's waiting share after the first quarter of the steps."""
    warm = len(steps) // 4
    later, began = steps[warm:], steps[warm - 1]["time_s"]
    span = later[-1]["time_s"] - began
    return {
        "steps": float(len(steps)),
        "groups_per_s": sum(step["groups"] for step in later) / span,
        "learner_waits": sum(step["seconds/wait"] for step in later) / span,
        "lag_mean": sum(step["lag_mean"] for step in steps) / len(steps),
    }


def predicted(outcomes: Sequence[Outcome]) -> dict[str, float]:
    names = ("groups_per_s", "learner_waits", "lag_mean")
    return {name: sum(getattr(one, name) for one in outcomes) / len(outcomes) for name in names}


def rows(lane: str) -> Iterator[dict[str, Any]]:
    if lane == "flow":
        for setup in FLOWS:
            plays = [simulate(EMULATED, setup, steps=FLOW_STEPS, seed=seed) for seed in range(SEEDS)]
            yield {
                "lane": lane,
                **asdict(setup),
                "predicted": predicted(plays),
                "measured": seen(flow(setup)),
            }
        return
    rates = None
    for generators, max_lag in LIGHT if lane == "light" else REAL:
        run_dir = (OUT / f"{lane}-{generators}-{max_lag}").absolute()
        shutil.rmtree(run_dir, ignore_errors=True)
        setup = (light if lane == "light" else real)(run_dir, generators, max_lag)
        if rates is None:
            told = measured(run_dir)
            rates = told.rates
            print("rates", json.dumps(rates.to_json()), *told.notes, sep="\n", flush=True)
        found = seen(list(read_lines(run_dir / "metrics.jsonl")))
        steps = int(found["steps"])
        plays = [simulate(rates, setup, steps=steps, seed=seed) for seed in range(SEEDS)]
        yield {"lane": lane, **asdict(setup), "predicted": predicted(plays), "measured": found}


def main() -> None:
    lane = sys.argv[1] if len(sys.argv) > 1 else ""
    if lane not in ("flow", "light", "real"):
        sys.exit(f"usage: python -m benchmarks.planning flow|light|real, got {lane!r}")
    OUT.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores; seed {SEED}, simulations over {SEEDS} seeds")
    with (OUT / f"{lane}.jsonl").open("w", encoding="utf-8") as results:
        for row in rows(lane):
            results.write(json.dumps(row) + "\n")
            guess, found = row["predicted"], row["measured"]
            error = guess["groups_per_s"] / found["groups_per_s"] - 1
            pairs = {name: f"{guess[name]:.2f} / {found[name]:.2f}" for name in guess}
            sizes = f"{row['generators']} generators, max_lag {row['max_lag']}"
            print(f"{lane}: {sizes}: predicted / measured {pairs}, groups/s {error:+.0%}", flush=True)


if __name__ == "__main__":
    main()
