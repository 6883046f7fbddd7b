"""LoRA adapters that are served beside their base: found, and checked against it before anything starts.

An engine takes a good deal that it cannot serve without a word: weights of a layer that it does not adapt,
options of PEFT that it does not know, an adapter of another model of the same shape. All of it is refused
here, and what is loaded is proved by `serving.replicas.adapter_proof`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from actors.adapter_format import BASE, RANKS, room_for
from actors.checkpoints import weights_digest
from pipelines.checkpoint import OUTSIDE_BLOCKS
from serving.checkpoint import NotServable, Servable
from serving.replicas.adapter_files import CONFIG, WEIGHTS, BadAdapter, absolute, fetch
from serving.wire import version_id

TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
FLOATS = ("F32", "F16", "BF16")
LANGUAGE = "language_model"  # of a model that sees, the part that takes an adapter
#: Options of PEFT that change nothing about how a finished adapter computes, or that are read below. Any
#: other that is set might, so it is refused.
UNDERSTOOD = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("r", "lora_alpha", "use_rslora", "lora_dropout", "inference_mode", "ensure_weight_tying"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("megatron_core", "qalora_group_size", "loftq_config", "eva_config"),  # of options that are refused
    )
)
#: Two more, with the values that are plain LoRA; other ways to begin change the base as well.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}

Layers = Mapping[str, tuple[int, int]]  # linear layer of the base -> (outputs, inputs)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A checked adapter of one base, under its own public name."""

    name: str
    source: str  # folder or fsspec URL; never shown to clients
    digest: str  # SHA-256 over its files
    rank: int
    scaling: float  # of B A: alpha / rank, or alpha / sqrt(rank)
    targets: tuple[str, ...]  # last names of its layers, such as q_proj
    effective: bool  # some B A is not zero, so it changes what the base says

    @property
    def id(self) -> str:
        return version_id(self.digest)


def find_adapters(given: Mapping[str, str], servable: Servable, gpus: int = 0) -> tuple[Adapter, ...]:
    """The checked adapters of a base. `given`: public name -> folder or URL. Raises NotServable."""
    if not given:
        return ()
    if gpus > 1:
        raise NotServable(
            f"adapters: {servable.name} is split over {gpus} GPUs, where adapters cannot be proved yet; set "
            "replicas.gpus=1, or serve the merged checkpoint"
        )
    base = _Base(servable.path, _layers(servable))
    found = []
    for name, source in given.items():
        try:
            found.append(_adapter(name, absolute(source), base))
        except BadAdapter as error:
            raise NotServable(f"adapters.{name}: {source}: {error}") from error
    return tuple(found)


def engine_arguments(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What vLLM needs to hold all of them at once."""
    if not adapters:
        return {}
    return {
        "enable_lora": True,
        "max_loras": len(adapters),
        "max_cpu_loras": len(adapters),
        "max_lora_rank": room_for(max(adapter.rank for adapter in adapters)),
        "lora_target_modules": sorted({target for adapter in adapters for target in adapter.targets}),
    }


@dataclass(frozen=True)
class _Base:
    path: Path
    layers: Layers

    @cached_property
    def weights(self) -> str:
        return weights_digest(self.path)


def _adapter(name: str, source: str, base: _Base) -> Adapter:
    folder, digest = fetch(source)
    rank, scaling = _read_config(folder / CONFIG)
    _require_base(folder / BASE, base)
    modules, effective = _read_weights(folder / WEIGHTS, base.layers, rank)
    return Adapter(
        name=name,
        source=source,
        digest=digest,
        rank=rank,
        scaling=scaling,
        targets=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        effective=effective,
    )


def _layers(servable: Servable) -> Layers:
    """The linear layers that may have an adapter, under the names that PEFT sees; no weights are loaded."""
    import torch
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(servable.path, local_files_only=True)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    return {
        name: (int(module.weight.shape[0]), int(module.weight.shape[1]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rpartition(".")[2] not in OUTSIDE_BLOCKS
        and (not servable.sees or LANGUAGE in name.split("."))
    }


def _read_config(file: Path) -> tuple[int, float]:
    """Rank and scaling."""
    config = _json(file)
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"{CONFIG}: peft_type: expected 'LORA', got {config.get('peft_type')!r}")
    for key, value in config.items():
        if value and key not in UNDERSTOOD and value not in PLAIN.get(key, ()):
            raise BadAdapter(
                f"{CONFIG}: {key}={value!r} is more than plain LoRA, which alone is served beside a base; "
                "merge the adapter and serve the whole model"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANKS[-1]:
        raise BadAdapter(f"{CONFIG}: r: expected a rank from 1 to {RANKS[-1]}, got {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or not alpha:
        raise BadAdapter(f"{CONFIG}: lora_alpha: expected a number other than 0, got {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _require_base(file: Path, base: _Base) -> None:
    """An adapter of a run of ours says which weights it was trained on."""
    if not file.exists():
        return
    wanted = _json(file).get("weights")
    if wanted != base.weights:
        raise BadAdapter(
            f"it was trained on other weights (SHA-256 {str(wanted)[:12]}) than those of {base.path} "
            f"({base.weights[:12]}); serve it beside the model that its run started from, since the run's "
            "checkpoints have the adapter merged already"
        )


def _read_weights(file: Path, layers: Layers, rank: int) -> tuple[set[str], bool]:
    """The adapted layers, and whether any is changed by its adapter; every tensor is looked at."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, dict[str, bool]] = {}  # layer -> factor -> whether it is other than zero
    try:
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                module, factor = _named(name, layers)
                _require_fit(name, factor, opened.get_slice(name), layers[module], rank)
                tensor = opened.get_tensor(name)
                if not tensor.isfinite().all():
                    raise BadAdapter(f"{name}: it holds values that are not finite")
                shapes.setdefault(module, {})[factor] = bool(tensor.any())
    except SafetensorError as error:
        raise BadAdapter(f"{WEIGHTS}: it is damaged or cut off: {error}") from None
    if not shapes:
        raise BadAdapter(f"{WEIGHTS}: it holds no tensors")
    for module, factors in shapes.items():
        if len(factors) == 1:
            have = next(iter(factors))
            raise BadAdapter(f"{module}: lora_{have} is there, lora_{'BA'[have == 'B']} is missing")
    return set(shapes), any(all(factors.values()) for factors in shapes.values())


def _named(name: str, layers: Layers) -> tuple[str, str]:
    match = TENSOR.fullmatch(name)
    if match is None:
        raise BadAdapter(f"{name!r}: expected a name such as base_model.model.<layer>.lora_A.weight")
    if match["module"] not in layers:
        near = next(
            (one for one in layers if one.rpartition(".")[2] == match["module"].rpartition(".")[2]), None
        )
        hint = f"such as {near}" if near else f"such as {next(iter(layers), 'none')}"
        raise BadAdapter(
            f"{name!r}: the base has no linear layer {match['module']!r} that takes an adapter; expected one "
            f"of its language layers, {hint}"
        )
    return match["module"], match["factor"]


def _require_fit(name: str, factor: str, found: Any, layer: tuple[int, int], rank: int) -> None:
    outputs, inputs = layer
    expected = [rank, inputs] if factor == "A" else [outputs, rank]
    what = "rank x inputs" if factor == "A" else "outputs x rank"
    if found.get_shape() != expected:
        raise BadAdapter(f"{name}: expected the shape {expected} ({what}), got {found.get_shape()}")
    if found.get_dtype() not in FLOATS:
        raise BadAdapter(f"{name}: expected one of {', '.join(FLOATS)}, got {found.get_dtype()}")


def _json(file: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{file.name}: it cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BadAdapter(f"{file.name}: expected a JSON object, got {type(value).__name__}")
    return value
