"""DeepSpeed and PEFT: the engine that trains a scorer, and frozen scorers beside it."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.forward import Scorer, without_dropout
from actors.processing import Processing
from pipelines.settings import LearnerSettings, LoraSettings

log = logging.getLogger("actors.learner")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NotFinite(RuntimeError):
    """Loss or gradient was not finite several steps in a row, or what was to be saved is not."""


def use_the_environments_tools() -> None:
    """Let DeepSpeed build its communication op with, and for, the environment that runs."""
    here = Path(sys.executable).parent
    # DeepSpeed runs `ninja` from PATH: this environment's own is found even where it was not activated.
    if str(here) not in (path := os.environ.get("PATH", os.defpath)).split(os.pathsep):
        os.environ["PATH"] = f"{path}{os.pathsep}{here}"
    # In torch's cache of the home folder two environments would rebuild the op in turns, for minutes each.
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def join_process_group(settings: LearnerSettings, rank: int, world: int) -> None:
    """Uses the process group that exists (Ray Train's), or makes one of a single process."""
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", "0")
    use_the_environments_tools()
    if settings.gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (rank, world):
            raise ValueError(
                f"learner: told to be rank {rank} of {world}, but the process group says "
                f"{dist.get_rank()} of {dist.get_world_size()}"
            )
        return
    if world != 1:
        raise ValueError(f"learner: rank {rank} of {world} needs an initialised process group, found none")
    dist.init_process_group(
        "nccl" if settings.gpus else "gloo",
        store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=settings.collective_timeout_s),
    )


def load_model(processing: Processing, dtype: str) -> Any:
    """The checkpoint's model with dropout off. Every rank loads the whole model before it is sharded."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    kind = AutoModelForImageTextToText if processing.has_vision else AutoModelForCausalLM
    model = kind.from_pretrained(
        processing.path, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True
    )
    without_dropout(model)
    return model


def add_adapter(model: Any, lora: LoraSettings, seed: int, has_vision: bool) -> Any:
    """Injects a LoRA adapter into the language layers (in place); returns the PEFT model around it."""
    from peft import LoraConfig, get_peft_model

    names = "|".join(lora.targets)
    pattern = rf".*language_model.*\.({names})" if has_vision else rf".*\.({names})"
    torch.manual_seed(seed)
    return get_peft_model(
        model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=pattern, lora_dropout=0.0)
    )


def engine_config(settings: LearnerSettings) -> dict[str, Any]:
    """DeepSpeed's configuration. The learner owns accumulation and warm-up, so they are not in it."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": list(settings.betas),
                "weight_decay": settings.weight_decay,
                "torch_adam": True,  # the CPU optimizer of DeepSpeed would be compiled first
            },
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": _sharding(settings),
        "steps_per_print": 10**9,
    }


def _sharding(settings: LearnerSettings) -> dict[str, Any]:
    sharding: dict[str, Any] = {"stage": settings.zero_stage, "overlap_comm": settings.gpus > 0}
    if settings.zero_stage == 3:
        sharding["stage3_param_persistence_threshold"] = 10_000  # smaller tensors are kept whole
    return sharding


def start_engine(scorer: Scorer, settings: LearnerSettings) -> Any:
    """A DeepSpeed engine around the scorer."""
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    buffers = _full_precision_buffers(scorer)
    trained: Any = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    with redirect_stdout(io.StringIO()):  # it prints what it loads
        engine, *_ = deepspeed.initialize(
            model=scorer, model_parameters=trained, config=engine_config(settings)
        )
    _restore(buffers)
    return engine


def freeze(model: nn.Module, trainable: Sequence[str]) -> None:
    """Leaves of what is trained only the parameters whose name one of the regular expressions finds.

    Without expressions nothing changes. Raises ValueError for one that finds nothing that is trained.
    """
    found: set[str] = set()
    open_ = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in trainable:
        matching = {name for name in open_ if re.search(pattern, name)}
        if not matching:
            raise ValueError(
                f"trainable: no trained parameter has a name that {pattern!r} finds; names look like "
                f"{', '.join(list(open_)[:3])}"
            )
        found |= matching
    for name, parameter in open_.items():
        parameter.requires_grad_(not trainable or name in found)


def frozen(scorer: Scorer, settings: LearnerSettings) -> Callable[..., dict[str, Tensor]]:
    """The scorer as it stays; all ranks call it. Under ZeRO-3 it is sharded and gathered layer by layer."""
    scorer.requires_grad_(False)
    if settings.zero_stage != 3:
        return scorer.to(device(settings)).eval()
    import deepspeed

    config = {key: value for key, value in engine_config(settings).items() if key != "optimizer"}
    buffers = _full_precision_buffers(scorer)
    engine, *_ = deepspeed.initialize(model=scorer, config=config)
    _restore(buffers)
    engine.eval()
    return engine


def device(settings: LearnerSettings) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if settings.gpus else torch.device("cpu")


Buffers = list[tuple[nn.Module, str, Tensor]]


def _full_precision_buffers(module: nn.Module) -> Buffers:
    """Rotary frequencies: DeepSpeed casts them to bfloat16 with the weights, which would shift positions."""
    return [
        (owner, name, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if buffer.dtype == torch.float32
    ]


def _restore(buffers: Buffers) -> None:
    for owner, name, saved in buffers:
        current: Tensor = getattr(owner, name)
        setattr(owner, name, saved.to(current.device))


@contextmanager
def gathered(parameters: Sequence[Tensor], zero_stage: int, *, written: bool = False) -> Iterator[None]:
    """Whole parameters for reading, or for writing the same on all ranks; under ZeRO-3 all ranks enter it."""
    if zero_stage != 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if written else None):
        yield


def apply_gradients(engine: Any, settings: LearnerSettings) -> tuple[float, bool]:
    """Clips and steps. (norm before clipping, applied); nothing changes when the norm is not finite."""
    plain = settings.zero_stage == 0 and settings.dtype == "float32"  # here DeepSpeed steps without looking
    if plain:
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            engine.zero_grad()
            return norm, False
        engine.step()
        return norm, True
    engine.step()
    return float(engine.get_global_grad_norm()), bool(engine.was_step_applied())


def reset_moments(engine: Any) -> None:
    """The optimizer forgets: step counts and moments are those of its start."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # ZeRO wraps the optimizer
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


@contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed logs every file of a checkpoint; errors still pass."""
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
