"""Runs of two learner ranks, one of which is to be killed in an asserted phase; see `ranks.py`.

A rank that is to be killed says so by a mark, from within the phase in which it is to die.
"""

from __future__ import annotations

import hashlib
import io
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import torch
import torch.distributed as dist
from rank_scenes import Rank

from actors import checkpoints
from actors.learner import Learner
from actors.learner_loop import Loop
from pipelines.settings import CheckpointSettings, LearnerSettings, Settings, SyncSettings
from pipelines.types import Shard


@dataclass
class Ports:
    """Hands out the shards of steps 1 to `last`."""

    me: Rank
    last: int

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        return self.me.share(step) if step <= self.last else Shard(step=step, stop=True)

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None: ...

    def snapshot(self, step: int) -> Mapping[str, Any]:
        return {"trained": step}

    def refer(self, attempt: int, weights: Any) -> None: ...

    def hold(self, attempt: int, number: int, tensors: Any) -> None: ...

    def publish(self, version: Any) -> None: ...


def aligned(me: Rank, run: str, attempt: int, arm: Callable[[Loop], None] | None = None) -> dict[str, Any]:
    """Steps 1 to 4 with a commit after each, from the newest checkpoint; `arm` prepares a death."""
    run_dir = me.folder / run
    settings = Settings(
        learner=LearnerSettings(zero_stage=2, micro_batch=2, warmup_steps=0, lr=1e-3, steps=4),
        sync=SyncSettings(every=4),
        checkpoint=CheckpointSettings(every=1, keep=2),
    )
    learner = Learner(me.model, settings.learner, cases.recipe(), 1, me.rank, me.world)
    found = checkpoints.recover(run_dir) if me.rank == 0 else None
    learner.barrier()
    found = found or checkpoints.newest_verified(run_dir)
    if found is not None:
        learner.load(found.path)
    loop = Loop(
        learner=learner,
        ports=Ports(me, 4),
        settings=settings,
        run_dir=run_dir,
        canaries=[],
        attempt=attempt,
        step=found.step if found is not None else 0,
    )
    begun = loop.step
    if arm is not None and me.rank == 1:
        arm(loop)
    steps = loop.run()
    digest = hashlib.sha256(b"".join(a.tobytes() for _, a in sorted(learner.export().items())))
    return {"begun": begun, "steps": steps, "weights": digest.hexdigest()}


def whole(me: Rank) -> dict[str, Any]:
    return aligned(me, "whole", 1)


def backward(me: Rank) -> dict[str, Any]:
    """Rank 1 dies between the gradients of two layers of step 2."""

    def arm(loop: Loop) -> None:
        def die(grad: torch.Tensor) -> torch.Tensor:
            if loop.step == 2:
                _wait_for_death(me, "backward")
            return grad

        layers = [p for name, p in loop.learner.policy.model.named_parameters() if "layers.1." in name]
        layers[0].register_hook(die)

    return aligned(me, "killed", 1, arm)


def allreduce(me: Rank) -> dict[str, Any]:
    """Rank 1 dies inside a reduction of step 3, for which rank 0 is late."""
    go = me.folder / "go-allreduce"
    run_dir = me.folder / "killed"

    def arm(loop: Loop) -> None:
        for name in ("all_reduce", "reduce", "reduce_scatter_tensor"):
            real = getattr(dist, name)

            def watched(*arguments: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
                if loop.step != 3:
                    return _real(*arguments, **options)
                timer = threading.Timer(0.3, _mark, (me, "allreduce", _name))
                timer.start()
                try:
                    return _real(*arguments, **options)
                finally:
                    timer.cancel()  # it was not inside for so long

            setattr(dist, name, watched)

    if me.rank == 0:
        real = Learner._accumulate

        def late(self: Learner, *arguments: Any) -> Any:
            newest = checkpoints.newest_verified(run_dir)
            while newest is not None and newest.step == 2 and not go.exists():
                time.sleep(0.01)
            return real(self, *arguments)

        Learner._accumulate = late
    return aligned(me, "killed", 2, arm)


def saving(me: Rank) -> dict[str, Any]:
    """Rank 1 dies with half of its shard of step 3 on the disk."""

    def arm(loop: Loop) -> None:
        real = torch.save

        def half(value: Any, file: Any, *arguments: Any, **options: Any) -> None:
            if loop.step != 3 or not str(file).endswith("optim_states.pt"):
                return real(value, file, *arguments, **options)
            real(value, buffer := io.BytesIO(), *arguments, **options)
            Path(file).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            _wait_for_death(me, "saving")

        torch.save = half

    return aligned(me, "killed", 3, arm)


def resumed(me: Rank) -> dict[str, Any]:
    return aligned(me, "killed", 4)


def resumed_alone(me: Rank) -> dict[str, Any]:
    """One rank goes on where two had been."""
    return aligned(me, "copied", 5)


def _mark(me: Rank, phase: str, detail: str = "") -> None:
    partial = me.folder / f".{phase}"
    partial.write_text(detail or phase)
    partial.rename(me.folder / f"mark-{phase}")


def _wait_for_death(me: Rank, phase: str) -> None:
    _mark(me, phase)
    while True:
        signal.pause()
