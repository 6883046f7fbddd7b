"""The learner's state on disk, whole: resuming in the middle of any stage continues bit for bit.

With another number of ranks the optimizer is resharded (`actors.resharding`). Where that cannot be done the
weights are taken over and the optimizer starts anew, with its warm-up.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from actors import exporting, resharding, training

if TYPE_CHECKING:
    from actors.learner import Learner

TAG = "state"  # DeepSpeed's name for the one checkpoint of a folder
LAYOUT = "layout.json"  # what the shards depend on
PROGRESS = "progress.json"  # stage, counters, running statistics
HEADS = "heads.pt"
BASE = "base.safetensors"  # under an adapter, once adapters were merged
FACTORS = "factors.safetensors"  # the adapter's, under their names in memory
RNG = "rng-{}.pt"  # of one rank
START = "stage_start.safetensors"  # weights that a stage's extrapolation will lead away from

Resumed = Literal["exact", "resharded", "weights only"]


def save(learner: Learner, folder: Path) -> None:
    """See `Learner.save`."""
    first, policy, own = learner.rank == 0, learner.policy, folder / "learner"
    adapter = learner.settings.lora is not None
    tensors = exporting.whole_weights(policy.model, policy.names, learner.settings.zero_stage, first)
    _require_finite(learner, tensors)
    own.mkdir(parents=True, exist_ok=True)
    torch.save(_rng(), own / RNG.format(learner.rank))
    if first:
        exporting.write_checkpoint(folder, tensors, learner.processing)
        (own / LAYOUT).write_text(json.dumps(_layout(learner)))
        (own / PROGRESS).write_text(json.dumps(_progress(learner)))
        torch.save(learner.heads.state(), own / HEADS)
        if learner.start is not None:
            exporting.write_weights(own / START, learner.start)
    if policy.merged:
        base = policy.base(keep=first)
        if first:
            exporting.write_weights(own / BASE, base)
    elif adapter:
        factors = exporting.adapter_weights(policy.model, learner.settings.zero_stage, first)
        if first:
            exporting.write_adapter(folder / "adapter", factors, policy.adapter, policy.origin)
    if adapter:
        factors = policy.factors()
        if first:
            exporting.write_weights(own / FACTORS, factors)
    learner.references.save(own, first)
    with training.quiet():
        policy.engine.save_checkpoint(
            str(own),
            tag=TAG,
            save_latest=False,
            exclude_frozen_parameters=adapter,
        )
    if first:
        for script in own.glob("*.py"):  # a checkpoint holds data, no programs
            script.unlink()
    learner.barrier()


def load(learner: Learner, folder: Path) -> Resumed:
    """See `Learner.load`."""
    own = folder / "learner"
    ranks = _require_layout(learner, folder)
    progress: dict[str, Any] = json.loads((own / PROGRESS).read_text())
    _enter(learner, own, progress)
    how: Resumed = "exact"
    if ranks == learner.world or learner.settings.zero_stage == 0:
        path, _ = learner.policy.engine.load_checkpoint(
            str(own), tag=TAG, load_module_strict=learner.settings.lora is None
        )
        if path is None:
            raise ValueError(f"checkpoint {folder}: it holds no learner state to continue from")
    else:
        how = "resharded" if resharding.take_over(learner, folder, TAG) else "weights only"
    learner.applied_steps, learner.skipped_steps = progress["applied"], progress["skipped"]
    learner.skipped_in_a_row, learner.warm_steps = progress["skipped_in_a_row"], progress["warm"]
    learner.carry = progress["carry"]
    learner.heads.load(torch.load(own / HEADS, map_location=learner.policy.device, weights_only=True))
    if how == "weights only":
        _take_weights(learner, folder)
    _set_rng(torch.load(own / RNG.format(learner.rank % ranks), weights_only=True))
    return how


def estimate(learner: Learner) -> int:
    """Bytes of a checkpoint: weights twice (once for others, once in the shards), fp32 copy and moments."""
    found = 0
    for parameter in learner.policy.model.parameters():
        elements = int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a shard is here
        found += elements * (2 * parameter.element_size() + 12 * parameter.requires_grad)
    return found


def _take_weights(learner: Learner, folder: Path) -> None:
    """The checkpoint's weights, with an optimizer that starts anew."""
    policy, own = learner.policy, folder / "learner"
    if policy.lora is None:
        stored = exporting.read_weights(folder / "model.safetensors")
        policy.build({name: stored[known] for name, known in policy.names.items()}, policy.trainable)
    else:
        base = exporting.read_weights(own / BASE) if policy.merged else None
        policy.build(base, policy.trainable, exporting.read_weights(own / FACTORS))
    learner.heads.reset()
    learner.warm_steps = 0


def _require_finite(learner: Learner, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raises `NotFinite`: what is saved must be worth going on from."""
    engine = learner.policy.engine
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # ZeRO wraps the optimizer
    named = {name: exporting.to_tensor(array) for name, array in tensors.items()}
    for index, state in enumerate(optimizer.state.values()):
        named |= {f"{key} of optimizer shard {index}": value for key, value in state.items()}
    for head, module in learner.heads.modules.items():
        named |= {f"head {head}: {name}": parameter for name, parameter in module.named_parameters()}
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            raise training.NotFinite(
                f"rank {learner.rank}: {name} is not finite, so it is not saved; earlier checkpoints are "
                "whole. Lower learner.lr, or look at what the stage did at its end"
            )


def _rng() -> dict[str, Any]:
    """Of this process: torch, its device, numpy and Python."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": list(random.getstate()[1]),
        "gauss": random.getstate()[2],
    }
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _set_rng(saved: Mapping[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    keys, *rest = saved["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    random.setstate((3, tuple(saved["python"]), saved["gauss"]))
    if "cuda" in saved and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(saved["cuda"])


def _enter(learner: Learner, own: Path, progress: dict[str, Any]) -> None:
    """The saved stage: its base, adapter, trained parameters, reference and start."""
    policy, stage = learner.policy, learner.recipe.stages[progress["stage"]]
    lora = policy.lora.model_copy(update={"rank": progress["rank"]}) if policy.lora else None
    base = exporting.read_weights(own / BASE) if progress["merged"] else None
    if base is not None or (lora, stage.trainable) != (policy.lora, policy.trainable):
        policy.lora, policy.merged = lora, progress["merged"]
        policy.build(base, stage.trainable)
    learner.stage = progress["stage"]
    learner.references.enter(stage)
    learner.references.load(own)
    learner.start = exporting.read_weights(own / START) if (own / START).exists() else None


def _progress(learner: Learner) -> dict[str, Any]:
    return {
        "stage": learner.stage,
        "applied": learner.applied_steps,
        "skipped": learner.skipped_steps,
        "skipped_in_a_row": learner.skipped_in_a_row,
        "warm": learner.warm_steps,
        "merged": learner.policy.merged,
        "rank": learner.policy.lora.rank if learner.policy.lora else None,
        "carry": learner.carry,
    }


def _layout(learner: Learner) -> dict[str, Any]:
    settings = learner.settings
    lora = settings.lora.model_dump(mode="json") if settings.lora else None
    return {
        "world": learner.world,
        "zero_stage": settings.zero_stage,
        "dtype": settings.dtype,
        "lora": lora,
        "recipe": learner.recipe.name,
        "stages": len(learner.recipe.stages),
    }


def _require_layout(learner: Learner, folder: Path) -> int:
    """Number of ranks that wrote the checkpoint. Raises ValueError for one of other settings."""
    saved, now = json.loads((folder / "learner" / LAYOUT).read_text()), _layout(learner)
    keys = [key for key in now if key != "world" and saved[key] != now[key]]
    if keys:
        odd = ", ".join(f"{key}: saved with {saved[key]}, now {now[key]}" for key in keys)
        raise ValueError(
            f"checkpoint {folder}: the optimizer state cannot be taken over ({odd}); resume with "
            "the saved settings, or start a new run from the checkpoint as its model"
        )
    return int(saved["world"])
