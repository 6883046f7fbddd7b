"""The optimizer of a checkpoint, taken over by another number of ranks.

DeepSpeed's universal checkpoint holds the fp32 weights and both moments of each parameter whole; every rank
takes its share of them. ZeRO 1 to 3, LoRA and bfloat16 included, come out bit for bit; without ZeRO every
rank holds everything anyway.
"""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from actors import disk, exporting, training

if TYPE_CHECKING:
    from actors.learner import Learner


def convert(state: Path, universal: Path) -> None:
    """Write DeepSpeed's sharded folder `state` as a universal one."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = Namespace(
        input_folder=str(state),
        output_folder=str(universal),
        num_extract_workers=1,  # more would be processes of their own
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)


def take_over(learner: Learner, folder: Path, tag: str) -> bool:
    """Load the optimizer and the weights of a checkpoint that other ranks wrote; all ranks call it.

    False, on every rank, where DeepSpeed cannot do it, or where its weights are not the checkpoint's.
    """
    scratch = folder.parent / f".{folder.name}.{learner.world}-ranks"
    failure: Exception | None = None
    if learner.rank == 0:
        try:
            _prepare(folder / "learner" / tag, scratch / tag)
        except Exception as error:  # whatever DeepSpeed cannot convert: the weights still can be used
            failure = error
    try:
        if not _everybody(learner, failure):
            return False
        try:
            _load(learner, scratch, tag)
        except (AssertionError, OSError, KeyError, ValueError, RuntimeError) as error:
            failure = error
        return _everybody(learner, failure) and _same_weights(learner, folder)
    finally:
        learner.barrier()
        if learner.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def _prepare(state: Path, universal: Path) -> None:
    shutil.rmtree(universal.parent, ignore_errors=True)
    need = 2 * disk.size(state)  # its parts lie beside the whole for a while
    disk.require(state, need)
    with disk.named(state, need):
        convert(state, universal)


def _load(learner: Learner, scratch: Path, tag: str) -> None:
    engine = learner.policy.engine
    engine._config.load_universal_checkpoint = True  # a property of this load, not of the engine
    try:
        with training.quiet():
            engine.load_checkpoint(str(scratch), tag=tag, load_module_strict=learner.settings.lora is None)
    finally:
        engine._config.load_universal_checkpoint = False


def _everybody(learner: Learner, failure: Exception | None) -> bool:
    """Whether no rank failed. A full disk is no reason to go on without the optimizer: it is raised."""
    failures = [one for one in learner.everyones(failure) if one is not None]
    for one in failures:
        if isinstance(one, disk.DiskFull):
            raise one
    if failures:
        training.log.warning("the optimizer state cannot be taken over: %s", failures[0])
    return not failures


def _same_weights(learner: Learner, folder: Path) -> bool:
    """Whether the engine now holds the weights that the checkpoint stores."""
    policy, first = learner.policy, learner.rank == 0
    held = exporting.whole_weights(policy.model, policy.names, learner.settings.zero_stage, first)
    same = True
    if first:
        stored = exporting.read_weights(folder / "model.safetensors")
        # Merging an adapter may round otherwise on another machine; all else is copied.
        loose = 0.0 if policy.lora is None else 1e-4 if learner.settings.dtype == "float32" else 1e-2
        same = set(stored) == set(held) and all(
            torch.allclose(exporting.to_tensor(held[name]).float(), tensor.float(), loose, loose / 100)
            for name, tensor in stored.items()
        )
    return all(learner.everyones(same))
