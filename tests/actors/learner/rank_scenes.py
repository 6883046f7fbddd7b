"""What learner ranks do in a process of their own, with DeepSpeed; `ranks.py` runs the scenes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
from safetensors.torch import load_file

from actors import resharding
from actors.exporting import to_tensor, whole_weights
from actors.fingerprint import digest
from actors.learner import Learner, NotFinite
from pipelines.objectives.base import Reads, Term, per_comparison
from pipelines.recipe import Recipe
from pipelines.settings import LearnerSettings
from pipelines.types import Shard

HOUR = 3600.0
#: name -> settings
CONFIGS: dict[str, dict[str, Any]] = {
    "zero-0": {"zero_stage": 0},
    "zero-3": {"zero_stage": 3},
    "zero-3-lora": {"zero_stage": 3, "lora": {"rank": 4}},
    "zero-2-bfloat16": {"zero_stage": 2, "dtype": "bfloat16"},
    "zero-3-part": {"zero_stage": 3},  # trains some of the parameters
}
#: ranks that save -> what they save
SAVED = {2: ("zero-2-bfloat16", "zero-3-part"), 1: ("zero-0", "zero-3-lora")}
PART = (r"layers\.[12]\.",)


@dataclass(frozen=True)
class Sick(Term):
    """log p of the winner, times `factor[0]`, which a rank may set for itself."""

    on: str = "text"
    factor: Any = (1.0,)

    def weight(self, reads: Reads) -> torch.Tensor:
        return torch.ones(reads.size)

    def value(self, reads: Reads) -> torch.Tensor:
        table = reads.edges[self.on]
        return per_comparison(-reads.logps["policy"][table.winner] * self.factor[0], table.owner, reads.size)


@dataclass
class Rank:
    """What a scene sees of itself."""

    rank: int
    world: int
    folder: Path
    model: str

    def learner(self, config: str, recipe: Recipe | None = None, **changes: Any) -> Learner:
        sizes = {"micro_batch": 2, "warmup_steps": 3, "lr": 1e-3, **CONFIGS[config], **changes}
        stage = cases.stage(cases.everything(), trainable=PART if config.endswith("part") else ())
        settings = LearnerSettings.model_validate(sizes)
        return Learner(self.model, settings, recipe or cases.recipe(stage), 1, self.rank, self.world)

    def share(self, step: int) -> Shard:
        """Four comparisons of a step over the ranks."""
        groups = [cases.group(10 * step + index, images=index != 3) for index in range(4)]
        size = 4 // self.world
        mine = tuple(groups[self.rank * size : (self.rank + 1) * size])
        return Shard(step=step, stop=False, groups=mine, largest=size)

    def train(self, learner: Learner, *steps: int) -> list[dict[str, float]]:
        shards = {step: self.share(step) for step in steps}
        return [learner.train_step(s.groups, s.largest, step).metrics for step, s in shards.items()]


# -- scenes -------------------------------------------------------------------------------------------------


def fingerprint(learner: Learner) -> str:
    """SHA-256 of this rank's weights, optimizer, heads, statistics, counters and generators of chance."""
    policy = learner.policy
    optimizer = getattr(policy.engine.optimizer, "optimizer", policy.engine.optimizer)  # ZeRO wraps it
    progress = (learner.stage, learner.applied_steps, learner.skipped_steps, learner.warm_steps)
    chance = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
    shards = [list(optimizer.state.values()), [group["params"] for group in optimizer.param_groups]]
    weights = [dict(policy.model.named_parameters()), learner.heads.state()]
    return digest([weights, shards, learner.carry, progress, chance])


def save(me: Rank) -> dict[str, Any]:
    """Two steps, a checkpoint, two steps; from the checkpoint a new learner does the last two again."""
    found: dict[str, Any] = {}
    for config in SAVED[me.world]:
        folder = me.folder / f"{config}-by-{me.world}"
        learner = me.learner(config)
        me.train(learner, 1, 2)
        random.seed(me.rank)
        np.random.seed(me.rank)
        learner.save(folder)
        metrics, first = me.train(learner, 3, 4), fingerprint(learner)
        learner.policy.engine.destroy()
        again = me.learner(config)
        how = again.load(folder)
        me.train(again, 3, 4)
        found[config] = {"metrics": metrics, "how": how, "same": first == fingerprint(again)}
        again.policy.engine.destroy()
    return found


def skewed(me: Rank) -> dict[str, Any]:
    """As `save`, on ranks whose clocks are two hours apart."""
    real, offset = time.time, (HOUR if me.rank else -HOUR)
    time.time = lambda: real() + offset
    return save(me)


def resize(me: Rank) -> dict[str, Any]:
    """The last two steps from checkpoints that another number of ranks wrote."""
    found: dict[str, Any] = {}
    for config in SAVED[3 - me.world]:
        learner = me.learner(config)
        how = learner.load(me.folder / f"{config}-by-{3 - me.world}")
        warm = learner.warm_steps
        found[config] = {"metrics": me.train(learner, 3, 4), "how": how, "warm": warm}
        learner.policy.engine.destroy()
    return found


def unconvertible(me: Rank) -> dict[str, Any]:
    """DeepSpeed cannot convert, or converts to other weights: those of the checkpoint are used."""
    found: dict[str, Any] = {}
    real, config = resharding.convert, SAVED[3 - me.world][-1]
    folder = me.folder / f"{config}-by-{3 - me.world}"
    stored = load_file(folder / "model.safetensors")
    for name, how in (("refuses", _refuse), ("lies", lambda *paths: _other_weights(real, *paths))):
        resharding.convert = how
        learner = me.learner(config)
        resumed = learner.load(folder)
        policy, warm = learner.policy, learner.warm_steps
        held = whole_weights(policy.model, policy.names, learner.settings.zero_stage, True)
        found[name] = {
            "how": resumed,
            "equal": all(torch.equal(to_tensor(held[key]), stored[key]) for key in stored),
            "warm": warm,
            "lr": me.train(learner, 3)[0]["lr"],
            "left": [path.name for path in me.folder.glob(".*ranks")],
        }
        policy.engine.destroy()
    return found


def _refuse(state: Path, universal: Path) -> None:
    raise NotImplementedError("no such optimizer")


def _other_weights(real: Callable[..., None], state: Path, universal: Path) -> None:
    real(state, universal)
    for file in universal.glob("zero/*/fp32.pt"):
        stored = torch.load(file, weights_only=False)
        torch.save({**stored, "param": stored["param"] + 0.01}, file)


def sick(me: Rank) -> dict[str, Any]:
    """Rank 1 alone meets a loss, then a gradient, that is not finite."""
    found: dict[str, Any] = {}
    for config in ("zero-0", "zero-3"):
        factor = [1.0]
        term = Sick(factor=factor)
        learner = me.learner(config, cases.recipe(cases.stage(term)), max_skipped=2, warmup_steps=0)
        before = learner.export()
        factor[0] = math.nan if me.rank == 1 else 1.0
        shard = me.share(1)
        results = [learner.train_step(shard.groups, shard.largest, 1)]
        factor[0] = 1.0
        handles = _poison(learner) if me.rank == 1 else []
        results.append(learner.train_step(shard.groups, shard.largest, 2))
        skipped, same = learner.skipped_steps, _equal(before, learner.export())
        try:
            learner.train_step(shard.groups, shard.largest, 3)
            error = ""
        except NotFinite as failure:
            error = str(failure)
        for handle in handles:
            handle.remove()
        healthy = learner.train_step(shard.groups, shard.largest, 4)
        found[config] = {
            "applied": [result.applied for result in results],
            "skipped": skipped,
            "same": same,
            "error": error,
            "healthy": healthy.applied,
            "bad": list(results[0].bad),
        }
        learner.policy.engine.destroy()
    return found


def _poison(learner: Learner) -> list[Any]:
    parameter = next(iter(learner.policy.model.parameters()))
    return [parameter.register_hook(lambda grad: grad * math.nan)]


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return set(left) == set(right) and all(np.array_equal(left[name], right[name]) for name in left)
