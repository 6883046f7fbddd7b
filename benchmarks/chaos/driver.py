"""The driver of a protocol run: the real attempts, fleet, ledger and publisher around light workers.

    python -m benchmarks.chaos.driver RUN_DIR ADDRESS [--resume]

Exit codes: 0 finished, 143 stopped by SIGTERM, 3 ended with a named error; `outcomes.jsonl` says which.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.attempts import Attempts, Desk
from actors.fleet import Fleet
from actors.ledger import Ledger
from actors.plan import Plan
from actors.weights import Publisher
from benchmarks.chaos.beacon import Beacon
from benchmarks.chaos.light import LightGenerator, LightPerturber, LightPrompts, LightScorer, World
from benchmarks.chaos.ranks import LightHost, LightRecipe
from pipelines.admission import admission_of
from pipelines.journal import Journal
from pipelines.ownership import owned
from pipelines.scaling import Sizes
from pipelines.settings import Settings

CASE = "case.json"
OUTCOMES = "outcomes.jsonl"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One protocol run: its inputs and its settings."""

    world: World
    settings: dict[str, Any]
    health_s: float = 3.0  # a worker that does not answer for so long is replaced
    progress_s: float = 3.0  # the same of a generator that does not decode
    lease_s: float = 15.0
    wait_s: float = 40.0
    facts: dict[str, Any] = field(default_factory=dict[str, Any])  # for people

    def write(self) -> None:
        self.world.run_dir.mkdir(parents=True, exist_ok=True)
        told = asdict(self) | {"world": asdict(self.world)}
        (self.world.run_dir / CASE).write_text(json.dumps(told, default=_plain, indent=1))

    @classmethod
    def read(cls, run_dir: Path) -> Case:
        told = json.loads((run_dir / CASE).read_text())
        world: dict[str, Any] = dict(told.pop("world")) | {"run_dir": run_dir}
        for name in ("poison", "crash", "garbage"):
            world[name] = frozenset(world[name])
        world["skew_s"] = tuple(world["skew_s"])
        return cls(world=World(**world), **told)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)


class ChaosLedger(Ledger):
    """The real ledger, found by its beacon."""

    def __init__(self, world: World, attempt: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, attempt=attempt, **options)
        self._world = world
        self._beacon = Beacon(world.run_dir, "ledger", 0, attempt=attempt)

    async def snapshot(self, step: int) -> dict[str, Any]:
        with self._beacon.at("snapshot"):
            return await super().snapshot(step)

    async def restore(self, snapshot: Any) -> None:
        with self._beacon.at("restoring"):
            await asyncio.sleep(self._world.restore_s)
            await super().restore(snapshot)
            await asyncio.sleep(self._world.restore_s)


class ChaosPublisher(Publisher):
    """The real publisher, found by its beacon."""

    def __init__(self, world: World, attempt: int) -> None:
        super().__init__(attempt, ray.put)
        self._beacon = Beacon(world.run_dir, "publisher", 0, attempt=attempt)

    async def hold(self, attempt: int, number: int, tensors: Any) -> None:
        self._beacon.set("held", len(self._coming[1]) + 1)
        await super().hold(attempt, number, tensors)

    async def publish(self, *arguments: Any, **options: Any) -> None:
        await super().publish(*arguments, **options)
        self._beacon.set("held", 0)


SERVICE: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000}


@dataclass(frozen=True)
class LightMakers:
    """Members of the fleet, as `actors.crew.RayMakers` makes the real ones."""

    world: World

    def generator(self, index: int) -> Any:
        return self._make(LightGenerator, index, num_cpus=1)

    def scorer(self, index: int) -> Any:
        return self._make(LightScorer, index, num_cpus=0.1)

    def perturber(self, index: int) -> Any:
        return self._make(LightPerturber, index, num_cpus=0.1)

    def _make(self, kind: Any, index: int, num_cpus: float) -> Any:
        options = SERVICE | {"num_cpus": num_cpus, "scheduling_strategy": "SPREAD"}
        return ray.remote(kind).options(**options).remote(index, self.world)


class LightServices:
    """What lives as long as an attempt, as `actors.crew.RayServices`."""

    def __init__(self, plan: Plan, case: Case) -> None:
        self._plan, self._world = plan, case.world
        world = case.world
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = SERVICE | {"scheduling_strategy": here}

        def make(kind: Any, *arguments: Any, **named: Any) -> Any:
            return ray.remote(kind).options(**options).remote(*arguments, **named)

        settings = plan.settings
        self.ledger = make(
            ChaosLedger,
            world,
            plan.attempt,
            run=settings.name,
            admission=admission_of(settings, plan.recipe),
            max_drop_share=settings.max_drop_share,
            seed=settings.seed,
            max_tries=settings.rollout.max_tries,
            lease_s=case.lease_s,
            wait_s=case.wait_s,
            start_s=case.wait_s,
        )
        self.publisher = make(ChaosPublisher, world, plan.attempt)
        self.prompts = make(LightPrompts, world)
        self._host = make(LightHost, world, plan.attempt)

    async def fit(self, ranks: int) -> None:
        plan = self._plan
        config = {
            "settings": plan.settings,
            "world": self._world,
            "recipe": plan.recipe,
            "run_dir": str(plan.run_dir),
            "attempt": plan.attempt,
            "resumed": str(plan.resumed) if plan.resumed else None,
            "ledger": self.ledger,
            "publisher": self.publisher,
        }
        await self._host.fit.remote(config, ranks)

    @property
    def handles(self) -> dict[str, Any]:
        return {
            "trainer": self._host,
            "ledger": self.ledger,
            "publisher": self.publisher,
            "prompts": self.prompts,
        }

    def kill(self) -> None:
        for actor in self.handles.values():
            ray.kill(actor)


class LightRun:
    """As `actors.run.Run`, without what needs a model."""

    makers: type[LightMakers] = LightMakers

    def __init__(self, plan: Plan, case: Case) -> None:
        self.plan, self.case = plan, case
        self.stop = asyncio.Event()
        self.signum: int | None = None
        self.events = Journal(plan.run_dir / "events.jsonl")
        self.metrics = Journal(plan.run_dir / "metrics.jsonl")
        rollout = plan.settings.rollout
        self.fleet = Fleet(
            self.makers(case.world),
            Sizes.of(rollout),
            self.events,
            canaries=(),
            health_timeout_s=case.health_s,
            progress_timeout_s=case.progress_s,
            start_timeout_s=float(rollout.engine.start_timeout_s),
            adopt_timeout_s=3.0 * rollout.engine.timeout_s,
            folder=plan.run_dir,
        )
        desk = Desk(
            begin=lambda plan: LightServices(plan, case),
            fleet=self.fleet,
            events=self.events,
            note=self.metrics.append,
            stop=self.stop,
            stage=self._stage,
            evaluate=self._evaluate,
        )
        self.attempts = Attempts(plan, desk)

    async def execute(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._asked)
        loop.add_signal_handler(signal.SIGUSR2, _print_tasks)
        work = asyncio.create_task(self.attempts.run())
        serve = asyncio.create_task(self._serve())
        try:
            done, _ = await asyncio.wait({work, serve}, return_when=asyncio.FIRST_COMPLETED)
            if serve in done:
                serve.result()
            work.result()
        finally:
            for task in (work, serve):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            await self.fleet.stop()
            self.events.close()
            self.metrics.close()

    async def _serve(self) -> None:
        await self.fleet.start()
        await self.fleet.supervise()

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        yield

    async def _evaluate(self, when: str) -> None:
        """Nothing to measure."""

    def _asked(self) -> None:
        if self.signum is not None:
            os._exit(128 + signal.SIGTERM)
        self.signum = signal.SIGTERM
        self.stop.set()


def _print_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def plan_of(case: Case, resume: bool) -> Plan:
    run_dir = case.world.run_dir
    plan = Plan(
        settings=Settings.model_validate(case.settings),
        run_dir=run_dir,
        recipe=LightRecipe(),  # type: ignore[arg-type]
        source=None,  # type: ignore[arg-type]
        inventory=None,  # type: ignore[arg-type]
        model=run_dir,
        canaries=(),
    )
    return plan.renewed() if resume else plan


async def _go(case: Case, resume: bool, counts: dict[str, Any]) -> tuple[str, int]:
    """Status and exit code; fills in the ledger's last counts."""
    run = LightRun(plan_of(case, resume), case)
    status, code = "finished", 0
    try:
        await run.execute()
    except Exception as error:
        status, code = f"failed: {type(error).__name__}: {error}", 3
    counts.update(run.attempts.counts)
    stopped = run.signum is not None and not code
    return ("stopped", 128 + signal.SIGTERM) if stopped else (status, code)


def main() -> None:
    run_dir, address, resume = Path(sys.argv[1]), sys.argv[2], "--resume" in sys.argv
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    outcomes = Journal(run_dir / OUTCOMES)
    counts: dict[str, Any] = {}
    with owned(run_dir):
        ray.init(address=address, log_to_driver=False, _node_ip_address=LOOPBACK, logging_level=logging.ERROR)
        outcomes.write("began", pid=os.getpid(), resume=resume, monotonic=time.monotonic())
        status, code = asyncio.run(_go(Case.read(run_dir), resume, counts))
        outcomes.write("ended", status=status, code=code, counts=counts, monotonic=time.monotonic())
    ray.shutdown()
    sys.exit(code)


if __name__ == "__main__":
    main()
