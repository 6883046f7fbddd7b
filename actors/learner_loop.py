"""The learner's loop under Ray Train. All ranks do the same things in the same order:

pull -> train -> log -> [end of a stage: what it does then] -> publish (every `sync.every` steps, and where a
stage ends) -> [next stage] -> report -> commit (every `checkpoint.every` and at the end).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors import checkpoints
from actors.comparison_log import write_comparisons, write_media
from actors.learner import Learner
from actors.step_log import StepResult
from actors.tickets import BODIES
from pipelines.admission import admission_of
from pipelines.recipe import Recipe
from pipelines.settings import Settings
from pipelines.types import Canary, Shard, WeightVersion

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "ray")
PULL_TIMEOUT_S = 3600.0  # a step waits for its groups; whoever produces them has shorter deadlines of its own


class Ports(Protocol):
    """What the loop needs of the rest of a run; every call has a deadline and raises what failed there."""

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard: ...

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None: ...

    def snapshot(self, step: int) -> Mapping[str, Any]: ...

    def refer(self, attempt: int, weights: Mapping[str, Any]) -> None: ...

    def publish(self, version: WeightVersion, tensors: Mapping[str, np.ndarray]) -> None: ...


class RayPorts:
    """Ports that are actors."""

    def __init__(self, ledger: Any, publisher: Any, timeout_s: float) -> None:
        self._ledger, self._publisher, self._timeout_s = ledger, publisher, timeout_s

    def _get(self, ref: Any, what: str, timeout_s: float | None = None) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError

        deadline = timeout_s or self._timeout_s
        try:
            return ray.get(ref, timeout=deadline)
        except GetTimeoutError:
            raise TimeoutError(f"learner: {what} did not answer within {deadline:.0f} s") from None

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        ref = self._ledger.pull.remote(attempt, step, rank, world)
        return self._get(ref, f"the ledger, asked for step {step},", PULL_TIMEOUT_S)

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        self._get(self._ledger.trained.remote(attempt, step, dict(metrics)), "the ledger")

    def snapshot(self, step: int) -> Mapping[str, Any]:
        return self._get(self._ledger.snapshot.remote(step), "the ledger")

    def refer(self, attempt: int, weights: Mapping[str, Any]) -> None:
        self._get(self._publisher.refer.remote(attempt, weights), "the publisher")

    def publish(self, version: WeightVersion, tensors: Mapping[str, np.ndarray]) -> None:
        self._get(self._publisher.publish.remote(version, tensors), "the publisher")
        self._get(self._ledger.published.remote(version.number), "the ledger")


def boundaries(settings: Settings, recipe: Recipe) -> frozenset[int]:
    """The steps after which a stage hands over to the next, or does something at its end."""
    ends = recipe.ends(settings.learner.steps)
    return frozenset(ends if recipe.stages[-1].then else ends[:-1])


@dataclass
class Loop:
    """One rank's loop over one attempt."""

    learner: Learner
    ports: Ports
    settings: Settings
    run_dir: Path
    canaries: Sequence[Canary]
    attempt: int
    step: int = 0  # steps trained, those of earlier attempts included
    published: int = -1
    published_step: int = -1
    committed_step: int = -1
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # since the last report

    def run(self) -> int:
        """Trains until the ledger says stop; returns the number of steps taken in all."""
        self.committed_step = self.step
        self._publish(admission_of(self.settings, self.learner.recipe).due(self.step + 1))
        while True:
            with self._timed("wait"):
                shard = self.ports.pull(self.attempt, self.step + 1, self.learner.rank, self.learner.world)
            if shard.stop:
                break
            self._train(shard)
        if self.published_step != self.step:
            self._publish(self.published + 1)
        if self.committed_step != self.step:
            self._commit()
        return self.step

    def _train(self, shard: Shard) -> None:
        self.step += 1
        result = self.learner.train_step(shard.groups, shard.largest, self.step, self.published)
        self._log(shard, result)
        ending = self.step in boundaries(self.settings, self.learner.recipe)
        if ending:
            with self._timed("stage"):
                self.learner.end_stage()
        if ending or self.step % self.settings.sync.every == 0:
            with self._timed("publish"):
                self._publish(self.published + 1)
        if ending and self.learner.stage + 1 < len(self.learner.recipe.stages):
            with self._timed("stage"):
                self.learner.begin_stage(self.learner.stage + 1)
        if self.learner.rank == 0:
            times = {f"seconds/{name}": seconds for name, seconds in self.seconds.items()}
            self.ports.trained(self.attempt, self.step, result.metrics | times)
        self.seconds = {}
        if self.step % self.settings.checkpoint.every == 0:
            self._commit()

    def _log(self, shard: Shard, result: StepResult) -> None:
        rank = self.learner.rank
        write_comparisons(
            self.run_dir, shard.groups, result.margins, attempt=self.attempt, step=self.step, rank=rank
        )
        if rank == 0:
            write_media(self.run_dir, shard.groups, self.step)

    def _publish(self, number: int) -> None:
        """All ranks take part, since sharded weights are gathered; rank 0 sends."""
        canary = self.learner.canary(self.canaries)
        tensors = self.learner.export()
        sampled = "reference" in self.learner.recipe.needs  # by generators
        reference = self.learner.reference_weights() if sampled else None
        if self.learner.rank == 0:
            if reference is not None:
                self.ports.refer(self.attempt, reference)
            version = WeightVersion(
                attempt=self.attempt,
                number=number,
                step=self.step,
                stream="policy",
                manifest=self.learner.manifest(tensors),
                canary=canary,
                adapter=self.learner.syncs_adapter,
            )
            self.ports.publish(version, tensors)
        self.published, self.published_step = number, self.step

    def _commit(self) -> None:
        """Shards -> barrier -> ledger snapshot -> manifest -> rename; the other ranks wait."""
        began, first = time.perf_counter(), self.learner.rank == 0
        if first:
            checkpoints.begin(self.run_dir, self.step)
        self.learner.barrier()
        folder = checkpoints.root(self.run_dir) / f".step-{self.step}.partial"
        self.learner.save(folder)
        if first:
            ledger = dict(self.ports.snapshot(self.step))
            if BODIES in ledger:
                (folder / BODIES).write_bytes(ledger.pop(BODIES))
            facts = {
                "ledger": ledger,
                "weight_version": self.published,
                "packages": {name: installed(name) for name in PACKAGES},
            }
            checkpoints.commit(self.run_dir, self.step, self.attempt, facts)
            checkpoints.prune(self.run_dir, self.settings.checkpoint.keep)
        self.learner.barrier()
        self.committed_step = self.step
        self.seconds["commit"] = time.perf_counter() - began  # enters the next step's metrics

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def train_loop(config: dict[str, Any]) -> None:
    """Ray Train's worker function.

    `config`: settings, recipe, model (path of the starting checkpoint), canaries, run_dir, attempt,
    resumed (path of a verified checkpoint, or None), ledger and publisher (actor handles).
    """
    from ray import train

    context = train.get_context()
    settings: Settings = config["settings"]
    learner = Learner(
        config["model"],
        settings.learner,
        config["recipe"],
        seed=settings.seed,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    step = 0
    if config["resumed"]:
        step = checkpoints.verify(Path(config["resumed"])).step
        learner.load(Path(config["resumed"]))
    loop = Loop(
        learner=learner,
        ports=RayPorts(config["ledger"], config["publisher"], float(settings.learner.collective_timeout_s)),
        settings=settings,
        run_dir=Path(config["run_dir"]),
        canaries=config["canaries"],
        attempt=config["attempt"],
        step=step,
    )
    train.report({"step": loop.run()})
