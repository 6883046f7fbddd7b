"""A light learner: the real loop of a rank around integer weights, and a log of its own.

Training adds a hash of each group to the weights, modulo 2^62. So the weights of a checkpoint say which
groups they were trained on, in whatever order and on however many ranks; the recount adds the same up.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.exceptions import RayTaskError

from actors import checkpoints
from actors.learner_loop import Loop, RayPorts
from actors.proof import tensor_digest
from actors.remote import named
from benchmarks.chaos.beacon import Beacon
from benchmarks.chaos.light import World, weights_hash
from pipelines.loop import RoleFailed, RunFailed
from pipelines.schedules import InOrder
from pipelines.types import Group, Shard, TensorDigest, WeightVersion

NAMES = tuple(f"layer.{i}" for i in range(4))  # tensors
WIDTH = 16
MASK = (1 << 62) - 1
LOG = "trained"  # folder of the ranks' logs
SHARD = "weights-{rank}.npz"
BROKEN = ("connection_error", "timeout")
FINAL = (
    RunFailed,
    checkpoints.StaleAttempt,
    checkpoints.DiskFull,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)


def contribution(group: str, use: int, name: str) -> np.ndarray:
    """What one use of a group adds to a tensor. [WIDTH], int64, below 2^62."""
    digest = hashlib.sha512(f"{group}|{use}|{name}".encode()).digest()
    return np.frombuffer((digest * 2)[: 8 * WIDTH], np.int64) & MASK


class Ring:
    """Sums over ranks, through rank 0, with deadlines. `meeting`: the file that says where rank 0 listens."""

    def __init__(self, rank: int, world: int, meeting: Path, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._peers: dict[int, Connection] = {}
        if world == 1:
            return
        if rank == 0:
            listener = Listener(("127.0.0.1", 0))
            listener._listener._socket.settimeout(timeout_s)  # type: ignore[attr-defined]
            partial = meeting.with_suffix(".new")
            meeting.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(listener.address))
            partial.rename(meeting)
            for _ in range(world - 1):
                peer = listener.accept()
                self._peers[int.from_bytes(self._receive(peer, "a peer"), "big")] = peer
            return
        until = time.monotonic() + timeout_s
        while not meeting.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"rank {rank}: rank 0 did not open its door within {timeout_s:g} s")
            time.sleep(0.01)
        host, port = json.loads(meeting.read_text())
        self._peers[0] = Client((host, port))
        self._peers[0].send_bytes(rank.to_bytes(4, "big"))

    def sum(self, value: np.ndarray) -> np.ndarray:
        """Over all ranks, modulo 2^62. Raises TimeoutError or ConnectionError naming the missing rank."""
        if self._rank:
            self._send(0, value)
            return np.frombuffer(self._receive(self._peers[0], "rank 0"), np.int64).reshape(value.shape)
        for rank, peer in self._peers.items():
            part = np.frombuffer(self._receive(peer, f"rank {rank}"), np.int64).reshape(value.shape)
            value = (value + part) & MASK
        for rank in self._peers:
            self._send(rank, value)
        return value

    def _send(self, rank: int, value: np.ndarray) -> None:
        try:
            self._peers[rank].send_bytes(value.tobytes())
        except OSError as error:
            raise ConnectionError(f"rank {rank} is gone: {error}") from None

    def _receive(self, peer: Connection, who: str) -> bytes:
        try:
            if not peer.poll(self._timeout_s):
                raise TimeoutError(f"{who} did not take part in a collective within {self._timeout_s:g} s")
            return peer.recv_bytes()
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ConnectionError(f"{who} is gone in the middle of a collective") from None


@dataclass(frozen=True)
class LightStage:
    """What the flow reads of a stage."""

    freshness: int | None = None
    uses: int = 1
    replay: float = 0.0
    then: tuple[Any, ...] = ()
    order: InOrder = field(default_factory=InOrder)


@dataclass(frozen=True)
class LightRecipe:
    """What the flow reads of a recipe."""

    name: str = "light"
    stages: tuple[LightStage, ...] = (LightStage(),)
    needs: frozenset[str] = frozenset()

    def ends(self, steps: int) -> tuple[int, ...]:
        return tuple(round(steps * (i + 1) / len(self.stages)) for i in range(len(self.stages)))


class LightLearner:
    """What `Loop` drives, in place of DeepSpeed."""

    syncs_adapter = False

    def __init__(self, config: Mapping[str, Any], rank: int, world: int, beacon: Beacon) -> None:
        self.rank, self.world, self.stage = rank, world, 0
        self.recipe: LightRecipe = config["recipe"]
        self._attempt = int(config["attempt"])
        self._world: World = config["world"]
        self._beacon = beacon
        self._weights = {name: np.zeros(WIDTH, np.int64) for name in NAMES}
        folder = self._world.run_dir / LOG
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / f"attempt-{self._attempt:04d}-rank-{rank}.jsonl").open("a", encoding="utf-8")
        meeting = self._world.run_dir / "rings" / str(self._attempt)
        with beacon.at("joining"):
            self._ring = Ring(rank, world, meeting, self._world.collective_s)

    def note(self, *records: Mapping[str, Any]) -> None:
        """On disk when it returns: what was noted happened, whatever comes next."""
        for record in records:
            self._log.write(json.dumps(record) + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())

    def train_step(self, groups: Sequence[Group], largest: int, step: int, published: int) -> Any:
        gradient = np.zeros((len(NAMES) + 1, WIDTH), np.int64)
        with self._beacon.at("backward"):
            for group in groups:
                for place, name in enumerate(NAMES):
                    gradient[place] = (gradient[place] + contribution(group.id, group.use, name)) & MASK
            time.sleep(self._world.backward_s)
        if self._beacon.order("nan"):
            gradient[-1] = 1  # this rank's loss is not finite; every rank learns of it in the sum
            self._beacon.done("nan")
        with self._beacon.at("allreduce"):
            gradient = self._ring.sum(gradient)
        applied = not gradient[-1].any()
        if applied:
            for place, name in enumerate(NAMES):
                self._weights[name] = (self._weights[name] + gradient[place]) & MASK
        self.note(*(self._line(group, step, applied) for group in groups))
        metrics = {"loss": 0.5, "skipped": float(not applied)}
        margins = tuple({"text": 1.0} for group in groups for _ in group.comparisons)
        return SimpleNamespace(metrics=metrics, margins=margins, applied=applied, bad=())

    def _line(self, group: Group, step: int, applied: bool) -> dict[str, Any]:
        [comparison] = group.comparisons
        behaviour = comparison.candidates[0].behaviour
        assert behaviour is not None
        return {
            "event": "trained",
            "attempt": self._attempt,
            "step": step,
            "rank": self.rank,
            "group": group.id,
            "use": group.use,
            "position": comparison.prompts[0].id,
            "version": behaviour.newest,
            "digest": behaviour.digest,
            "tokens": [list(response.tokens) for response in comparison.responses],
            "applied": applied,
            "at": time.monotonic(),
        }

    def end_stage(self) -> None:
        """Nothing happens at the end of a light stage."""

    def begin_stage(self, stage: int) -> None:
        self.stage = stage

    def barrier(self) -> None:
        with self._beacon.at("barrier"):
            self._ring.sum(np.zeros(1, np.int64))

    def canary(self, canaries: Sequence[Any]) -> tuple[float, ...]:
        return ()

    def reference_weights(self) -> None:
        return None

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """Whole on rank 0, as the real one gathers it."""
        if self.rank == 0:
            yield from self.export().items()

    def export(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._weights.items()}

    def manifest(self, tensors: Mapping[str, np.ndarray]) -> dict[str, TensorDigest]:
        return {name: tensor_digest(array) for name, array in tensors.items()}

    def save(self, folder: Path) -> None:
        """Every rank writes a file of its own; rank 0 one more."""
        with self._beacon.at("saving"):
            time.sleep(self._world.save_s)
            if self._beacon.order("disk-full"):
                self._beacon.done("disk-full")
                raise OSError(28, "No space left on device", str(folder / SHARD.format(rank=self.rank)))
            with (folder / SHARD.format(rank=self.rank)).open("wb") as file:
                np.savez(file, allow_pickle=False, **self._weights)
                file.flush()
                time.sleep(self._world.save_s)
        self.barrier()  # as the real one: every shard is there when it returns

    def load(self, folder: Path) -> None:
        with self._beacon.at("loading"), np.load(folder / SHARD.format(rank=0), allow_pickle=False) as saved:
            self._weights = {name: saved[name] for name in NAMES}
            time.sleep(self._world.save_s)


class LightPorts(RayPorts):
    """The real ports, with what they wait for on the beacon and what was published in the log."""

    def __init__(self, learner: LightLearner, beacon: Beacon, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._learner, self._beacon = learner, beacon

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        with self._beacon.at("pulling"):
            return super().pull(attempt, step, rank, world)

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        with self._beacon.at("telling"):
            super().trained(attempt, step, metrics)

    def snapshot(self, step: int) -> Mapping[str, Any]:
        with self._beacon.at("committing"):
            return super().snapshot(step)

    def hold(self, attempt: int, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Each tensor is a bucket, so that a sync can be cut between two."""
        for name, array in tensors.items():
            with self._beacon.at("publishing"):
                super().hold(attempt, number, {name: array})

    def publish(self, version: WeightVersion) -> None:
        told = {"attempt": version.attempt, "version": version.number, "step": version.step}
        held = weights_hash(self._learner.export())
        self._learner.note({"event": "published", **told, "digest": version.digest, "held": held})
        with self._beacon.at("publishing"):
            super().publish(version)


class LightRank:
    """One rank's process."""

    def __init__(self, rank: int, world: World, attempt: int) -> None:
        self._beacon = Beacon(world.run_dir, "rank", rank, attempt=attempt)
        if rank < len(world.skew_s):
            real, shift = time.time, world.skew_s[rank]
            time.time = lambda: real() + shift

    def run(self, config: dict[str, Any], rank: int, ranks: int) -> int:
        """As `actors.learner_loop.train_loop`."""
        learner = LightLearner(config, rank, ranks, self._beacon)
        step, parent, resumed = 0, 0, config["resumed"]
        if resumed:
            found = checkpoints.verify(Path(resumed))
            step, parent = found.step, int(found.manifest["attempt"])
            learner.load(Path(resumed))
        began = {"event": "began", "attempt": config["attempt"], "parent": parent, "step": step}
        learner.note({**began, "rank": rank, "at": time.monotonic()})
        timeout_s = float(config["settings"].learner.collective_timeout_s)
        ports = LightPorts(learner, self._beacon, config["ledger"], config["publisher"], timeout_s)
        loop = Loop(
            learner=learner,  # type: ignore[arg-type]
            ports=ports,
            settings=config["settings"],
            run_dir=Path(config["run_dir"]),
            canaries=(),
            attempt=config["attempt"],
            step=step,
        )
        return loop.run()


def _named(error: Exception) -> RoleFailed:
    """As `actors.trainer.failed_rank`: what another attempt would only meet again is final."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    known = named(error, "learner")
    return RoleFailed(known.reason, known.role, known.detail, retry=not isinstance(cause, FINAL))


class LightHost:
    """As `actors.trainer.TrainerHost`: ends when a rank fails, and names the rank and the cause."""

    def __init__(self, world: World, attempt: int) -> None:
        self._world, self._attempt = world, attempt
        self._beacon = Beacon(world.run_dir, "trainer", 0, attempt=attempt)

    def fit(self, config: dict[str, Any], workers: int) -> None:
        import ray

        cpus = config["settings"].learner.cpus
        make = ray.remote(LightRank).options(num_cpus=cpus, scheduling_strategy="SPREAD")
        ranks = [make.remote(rank, self._world, self._attempt) for rank in range(workers)]
        work = {actor.run.remote(config, rank, workers): rank for rank, actor in enumerate(ranks)}
        waiting, failures = list(work), dict[int, RoleFailed]()
        with self._beacon.at("training"):
            while waiting:
                done, waiting = ray.wait(waiting, timeout=0.5 if failures else None)
                if failures and not done:
                    break
                for ref in done:
                    try:
                        ray.get(ref)
                    except Exception as error:
                        failures[work[ref]] = _named(error)
        if failures:
            # A death, or an error of its own, explains the broken connections of the others.
            rank = min(failures, key=lambda r: (failures[r].reason in BROKEN, r))
            cause = failures[rank]
            raise RoleFailed(cause.reason, "learner", f"rank {rank}: {cause.detail}", retry=cause.retry)
