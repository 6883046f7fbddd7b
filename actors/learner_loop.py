"""The learner's loop under Ray Train. All ranks do the same things in the same order:

pull -> train -> log -> [end of a stage: what it does then] -> publish (every `sync.every` steps, and where a
stage ends) -> [next stage] -> report -> commit (every `checkpoint.every`, on a notice that a node will be
taken away, and at the end).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actors import checkpoints, disk, publishing
from actors.comparison_log import write_comparisons, write_media
from actors.mirror import Mirror, Mirroring
from actors.tickets import BODIES
from actors.transfer import Arrays, Folders, in_buckets
from pipelines.admission import admission_of
from pipelines.settings import Settings
from pipelines.types import Canary, Shard, TensorDigest, WeightVersion

if TYPE_CHECKING:  # the order of a rank's work can be tried with a light learner, which starts without torch
    from actors.collective import Sender
    from actors.learner import Learner
    from actors.step_log import StepResult
    from pipelines.recipe import Recipe

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "ray")
PULL_TIMEOUT_S = 3600.0  # a step waits for its groups; whoever produces them has shorter deadlines of its own


class Ports(Protocol):
    """What the loop needs of the rest of a run; every call has a deadline and raises what failed there."""

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard: ...

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None: ...

    def snapshot(self, step: int) -> Mapping[str, Any]: ...

    def refer(self, attempt: int, weights: Mapping[str, Any]) -> None: ...

    def hold(self, attempt: int, number: int, tensors: Arrays) -> None:
        """A bucket of the version that comes next."""
        ...

    def publish(self, version: WeightVersion) -> None:
        """All buckets of it are held."""
        ...


class RayPorts:
    """Ports that are actors. `folders`: versions travel by disk. `sender`: by broadcast as well."""

    def __init__(
        self,
        ledger: Any,
        publisher: Any,
        timeout_s: float,
        folders: Folders | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._ledger, self._publisher, self._timeout_s = ledger, publisher, timeout_s
        self._folders, self._sender = folders, sender

    def _get(self, ref: Any, what: str, timeout_s: float | None = None) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError

        deadline = timeout_s or self._timeout_s
        try:
            return ray.get(ref, timeout=deadline)
        except GetTimeoutError:
            raise TimeoutError(f"learner: {what} did not answer within {deadline:.0f} s") from None

    def enlist(self, rank: int) -> None:
        """Say where this rank runs."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        self._get(self._ledger.enlist.remote(rank, node, os.getpid()), "the ledger")

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        ref = self._ledger.pull.remote(attempt, step, rank, world)
        return self._get(ref, f"the ledger, asked for step {step},", PULL_TIMEOUT_S)

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        sent = self._sender.counts if self._sender is not None else {}
        metrics = {**metrics, **{f"collective/{name}": count for name, count in sent.items()}}
        self._get(self._ledger.trained.remote(attempt, step, metrics), "the ledger")

    def snapshot(self, step: int) -> Mapping[str, Any]:
        return self._get(self._ledger.snapshot.remote(step), "the ledger")

    def refer(self, attempt: int, weights: Mapping[str, Any]) -> None:
        self._get(self._publisher.refer.remote(attempt, weights), "the publisher")

    def hold(self, attempt: int, number: int, tensors: Arrays) -> None:
        if self._folders is not None:
            self._folders.hold(number, tensors)
        else:
            self._get(self._publisher.hold.remote(attempt, number, tensors), "the publisher")
        if self._sender is not None:
            self._sender.hold(number, tensors)

    def publish(self, version: WeightVersion) -> None:
        folder = self._folders.publish(version) if self._folders is not None else None
        call = self._sender.open(version) if self._sender is not None else None
        waiting = self._get(
            self._publisher.publish.remote(version, folder=folder, call=call), "the publisher"
        )
        if self._sender is not None:
            self._sender.send(waiting)
        out = self._ledger.published.remote(version.number, version.digest, version.step)
        self._get(out, "the ledger")

    def close(self, within_s: float) -> None:
        """Let those who take the last version have it, if they are quick."""
        if self._sender is not None:
            self._sender.close(within_s)


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
    opening: Mapping[str, float] = field(default_factory=dict[str, float])  # enters the first step's metrics
    held: frozenset[Path] = frozenset()  # checkpoints that others still load from
    need: int = 0  # bytes of the first checkpoint, roughly
    # asked by all ranks after each step; a new answer that is not None makes them commit at once
    notice: Callable[[], Any] = lambda: None
    _noticed: Any = None
    _mirroring: Mirroring | None = None

    def run(self) -> int:
        """Trains until the ledger says stop; returns the number of steps taken in all."""
        self.committed_step = self.step
        mirror = self.settings.checkpoint.mirror
        if mirror is not None and self.learner.rank == 0:
            place = Mirror(mirror, self.run_dir.name)
            self._mirroring = Mirroring(place, self.run_dir, self.settings.checkpoint.keep)
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
        if self._mirroring is not None:
            self._mirroring.finish(self.settings.stop_grace_s)
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
            copied = self._mirroring.metrics() if self._mirroring is not None else {}
            self.ports.trained(self.attempt, self.step, {**result.metrics, **times, **copied, **self.opening})
        self.seconds, self.opening = {}, {}
        if self.step % self.settings.checkpoint.every == 0 or self._is_noticed():
            self._commit()

    def _is_noticed(self) -> bool:
        """Whether there is news of a node that will be taken away."""
        before, self._noticed = self._noticed, self.notice()
        return self._noticed is not None and self._noticed != before

    def _log(self, shard: Shard, result: StepResult) -> None:
        rank = self.learner.rank
        with disk.named(self.run_dir, disk.PROBE):
            write_comparisons(
                self.run_dir, shard.groups, result.margins, attempt=self.attempt, step=self.step, rank=rank
            )
            if rank == 0:
                write_media(self.run_dir, shard.groups, self.step)

    def _publish(self, number: int) -> None:
        """All ranks take part, since sharded weights are gathered; rank 0 sends."""
        canary = self.learner.canary(self.canaries)
        manifest: dict[str, TensorDigest] = {}
        for bucket in in_buckets(self.learner.stream(), self.settings.sync.bucket_mib * 2**20):
            manifest |= self.learner.manifest(bucket)
            self.ports.hold(self.attempt, number, bucket)
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
                manifest=manifest,
                canary=canary,
                adapter=self.learner.syncs_adapter,
            )
            self.ports.publish(version)
        self.published, self.published_step = number, self.step

    def _commit(self) -> None:
        """Shards -> barrier -> ledger snapshot -> manifest -> rename; the other ranks wait.

        Raises `DiskFull`; what was written of the new checkpoint is removed then, and earlier ones stay.
        """
        began, first = time.perf_counter(), self.learner.rank == 0
        folder = checkpoints.partial_of(self.run_dir, self.step)
        try:
            with disk.named(
                checkpoints.root(self.run_dir), checkpoints.usual_size(self.run_dir) or self.need
            ):
                if first:
                    checkpoints.begin(self.run_dir, self.step, self.need)
                self.learner.barrier()
                self.learner.save(folder)
                if first:
                    self._seal(folder)
        except disk.DiskFull:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.learner.barrier()
        self.committed_step = self.step
        self.seconds["commit"] = time.perf_counter() - began  # enters the next step's metrics

    def _seal(self, folder: Path) -> None:
        """Rank 0: what all ranks have written becomes the checkpoint of this step."""
        ledger = dict(self.ports.snapshot(self.step))
        if BODIES in ledger:
            (folder / BODIES).write_bytes(ledger.pop(BODIES))
        facts = {
            "ledger": ledger,
            "weight_version": self.published,
            "packages": {name: installed(name) for name in PACKAGES},
            **self._facts(ledger),
        }
        committed = checkpoints.commit(self.run_dir, self.step, self.attempt, facts)
        held = self.held
        if self._mirroring is not None:
            held |= self._mirroring.held
            self._mirroring.offer(committed)
        publishing.offer(self.settings, committed, self.step)
        checkpoints.prune(self.run_dir, self.settings.checkpoint.keep, held)

    def _facts(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        """What a manifest says beyond that; `ledger` is the ledger's snapshot."""
        return {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def train_loop(config: dict[str, Any]) -> None:
    """Ray Train's worker function.

    `config`: settings, recipe, model (path of the run's model), canaries, run_dir, attempt, resumed
    (path of a verified checkpoint, or None), ledger and publisher (actor handles).
    """
    from ray import train

    from actors import saving
    from actors.learner import Learner

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
    resumed = Path(config["resumed"]) if config["resumed"] else None
    step, opening = 0, dict[str, float]()
    if resumed is not None:
        step = checkpoints.verify(resumed).step
        how = learner.load(resumed)
        opening = {"resumed/ranks": float(learner.world), "resumed/optimizer": float(how != "weights only")}
    ports = RayPorts(
        config["ledger"],
        config["publisher"],
        float(settings.learner.collective_timeout_s),
        Folders(Path(config["run_dir"]) / "weights") if settings.sync.transport == "disk" else None,
        sender_of(settings, learner.rank),
    )
    ports.enlist(learner.rank)
    loop = Loop(
        learner=learner,
        ports=ports,
        settings=settings,
        run_dir=Path(config["run_dir"]),
        canaries=config["canaries"],
        attempt=config["attempt"],
        step=step,
        opening=opening,
        held=frozenset({resumed} if resumed else ()),
        need=saving.estimate(learner),
        notice=train.get_preemption_info,
    )
    step = loop.run()
    ports.close(settings.stop_grace_s / 2)
    train.report({"step": step})


def sender_of(settings: Settings, rank: int) -> Sender | None:
    """Who broadcasts: rank 0, where the settings ask for it."""
    if settings.sync.transport != "collective" or rank:
        return None
    import ray

    from actors.collective import Sender, backend_of

    # Half of what one weight sync may take, so that the other half is left for the other way.
    timeout_s = settings.rollout.engine.timeout_s / 2
    return Sender(backend_of(settings), ray.util.get_node_ip_address(), timeout_s)
