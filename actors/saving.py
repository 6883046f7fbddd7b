"""The learner's state on disk, whole: resuming in the middle of any stage continues bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors import exporting, training

if TYPE_CHECKING:
    from actors.learner import Learner

TAG = "state"  # DeepSpeed's name for the one checkpoint of a folder
STATE = "plumbline"  # the learner's own entry in it; DeepSpeed keeps names such as skipped_steps to itself
LAYOUT = "layout.json"  # what the shards depend on
PROGRESS = "progress.json"  # stage, counters, running statistics
HEADS = "heads.pt"
BASE = "base.safetensors"  # under an adapter, once adapters were merged
START = "stage_start.safetensors"  # weights that a stage's extrapolation will lead away from


def save(learner: Learner, folder: Path) -> None:
    """See `Learner.save`."""
    first, policy, own = learner.rank == 0, learner.policy, folder / "learner"
    adapter = learner.settings.lora is not None
    tensors = exporting.whole_weights(policy.model, policy.names, learner.settings.zero_stage, first)
    if first:
        exporting.write_checkpoint(folder, tensors, learner.processing)
        own.mkdir(exist_ok=True)
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
            exporting.write_adapter(folder / "adapter", factors, policy.adapter)
    learner.references.save(own, first)
    with training.quiet():
        policy.engine.save_checkpoint(
            str(own),
            tag=TAG,
            client_state={STATE: {"torch_rng": torch.get_rng_state()}},
            save_latest=False,
            exclude_frozen_parameters=adapter,
        )
    if first:
        for script in own.glob("*.py"):  # a checkpoint holds data, no programs
            script.unlink()
    learner.barrier()


def load(learner: Learner, folder: Path) -> None:
    """See `Learner.load`."""
    own = folder / "learner"
    _require_layout(learner, folder)
    progress: dict[str, Any] = json.loads((own / PROGRESS).read_text())
    _enter(learner, own, progress)
    path, state = learner.policy.engine.load_checkpoint(
        str(own), tag=TAG, load_module_strict=learner.settings.lora is None
    )
    if path is None:
        raise ValueError(f"checkpoint {folder}: it holds no learner state to continue from")
    learner.applied_steps, learner.skipped_steps = progress["applied"], progress["skipped"]
    learner.warm_steps = progress["warm"]
    learner.carry = progress["carry"]
    learner.heads.load(torch.load(own / HEADS, map_location=learner.policy.device, weights_only=True))
    torch.set_rng_state(state[STATE]["torch_rng"])


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


def _require_layout(learner: Learner, folder: Path) -> None:
    saved, now = json.loads((folder / "learner" / LAYOUT).read_text()), _layout(learner)
    odd = [f"{key}: saved with {saved[key]}, now {now[key]}" for key in now if saved[key] != now[key]]
    if odd:
        raise ValueError(
            f"checkpoint {folder}: the optimizer state cannot be taken over ({', '.join(odd)}); resume with "
            "the saved settings, or start a new run from the checkpoint as its model"
        )
