"""The learner's weights under the names of its checkpoint, whole on rank 0 however they are sharded."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.adapter_format import BASE
from actors.processing import Processing
from actors.training import gathered
from pipelines.checkpoint import NotACheckpoint
from pipelines.recipe import MergeAdapter, Recipe
from pipelines.settings import LearnerSettings

SIDE_FILES = {".json", ".jinja", ".txt", ".model"}  # configuration, processor, tokenizer, chat template


def names_on_disk(path: Path) -> set[str]:
    """Tensor names of a checkpoint's safetensors files. Raises `NotACheckpoint` when there are none."""
    from safetensors import safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise NotACheckpoint(
            f"model {str(path)!r}: expected *.safetensors, found none; other formats are not read"
        )
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    return names


def checkpoint_names(model: Any, path: Path) -> dict[str, str]:
    """Parameter name in memory -> tensor name in the checkpoint.

    transformers renames tensors while it loads a checkpoint; an engine that loads the exported weights
    expects the names of the checkpoint. A tied head that the checkpoint does not store is left out. Raises
    `NotACheckpoint` when the two cannot be matched one to one.
    """
    from transformers.core_model_loading import revert_weight_conversion

    stored = names_on_disk(path)
    meta = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    origin = {id(tensor): name for name, tensor in meta.items()}
    reverted = revert_weight_conversion(model, meta)
    names = {
        origin[id(tensor)]: name
        for name, tensor in reverted.items()
        if id(tensor) in origin and name in stored
    }
    lost = sorted(name for name, _ in model.named_parameters() if name not in names)
    if lost:
        raise NotACheckpoint(
            f"model {str(path)!r}: {len(lost)} parameters have no tensor of their own in the checkpoint, "
            f"such as {lost[:3]}; this architecture stores its weights in another form and cannot be exported"
        )
    return names


def to_array(host: Tensor) -> NDArray[Any]:
    """The array of a tensor in host memory; bfloat16, which numpy lacks, travels as its 16 bits (uint16)."""
    return host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()


def dtype_name(array: NDArray[Any]) -> str:
    """The name that manifests use: no weight is uint16, so that dtype stands for bfloat16."""
    return "bfloat16" if array.dtype == np.uint16 else str(array.dtype)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The inverse of `to_array`."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def syncs_adapter(settings: LearnerSettings, recipe: Recipe) -> bool:
    """Whether versions are LoRA adapters over an unchanged base; else they are whole weights."""
    merges = any(isinstance(action, MergeAdapter) for stage in recipe.stages for action in stage.then)
    return settings.lora is not None and not merges


def _plain(name: str) -> str:
    """The name a parameter had before the adapter wrapped its layer."""
    return name.replace(".base_layer.", ".")


def stream_weights(
    model: nn.Module, zero_stage: int, *, keep: bool = True, merged: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """A copy of each weight in host memory, one by one, under its name in memory without adapter.

    Under ZeRO-3 a parameter is whole only while it is copied, so no rank ever needs room for the model.
    LoRA layers are merged as W + scaling B A, in float32, then rounded; with `merged` unset they are left
    out. All ranks iterate to the end; only where `keep` is set does anything come. Merging rounds to the
    model's dtype, so in bfloat16 the merged weights differ from base and adapter by up to half a unit in the
    last place.
    """
    deltas = _adapted(model) if merged else {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied ones under each name
        if ".lora_" in name:
            continue
        adapter = deltas.get(name)
        needed = [parameter, *(adapter[:2] if adapter else ())]
        with gathered(needed, zero_stage):
            if not keep:
                continue
            tensor = parameter.data
            if adapter:
                down, up, scaling = adapter
                delta = up.data.float() @ down.data.float() * scaling
                tensor = (tensor.float() + delta).to(tensor.dtype)
            host = tensor.detach().to("cpu", copy=True).contiguous()
        yield _plain(name), host


def host_weights(
    model: nn.Module, zero_stage: int, *, keep: bool = True, merged: bool = True
) -> dict[str, Tensor]:
    """All that `stream_weights` gives, at once."""
    return dict(stream_weights(model, zero_stage, keep=keep, merged=merged))


def stream_whole_weights(
    model: nn.Module, names: Mapping[str, str], zero_stage: int, keep: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """`stream_weights` under checkpoint names, adapters merged."""
    for name, tensor in stream_weights(model, zero_stage, keep=keep):
        if name in names:
            yield names[name], to_array(tensor)


def whole_weights(
    model: nn.Module, names: Mapping[str, str], zero_stage: int, keep: bool
) -> dict[str, NDArray[Any]]:
    """All weights under checkpoint names, adapters merged; all ranks call it."""
    return dict(stream_whole_weights(model, names, zero_stage, keep))


@torch.no_grad()
def copy_into(model: nn.Module, weights: Mapping[str, Tensor], zero_stage: int, share: float = 1.0) -> None:
    """parameter <- (1 - share) parameter + share weight, computed in float32; all ranks call it.

    `model` has no adapter. `weights`: what `host_weights` gives, on all ranks, or the parameters of a model
    of the same shape without adapter, sharded or not.
    """
    for name, parameter in model.named_parameters():
        with gathered([weights[name]], zero_stage), gathered([parameter], zero_stage, written=True):
            new = weights[name].to(parameter.device)
            if share != 1:
                new = (1 - share) * parameter.data.float() + share * new.float()
            parameter.data.copy_(new)


def _adapted(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter, float]]:
    """Weight name -> (A, B, scaling) of each layer with an adapter."""
    found: dict[str, tuple[nn.Parameter, nn.Parameter, float]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:  # pyright: ignore[reportOperatorIssue]
            layer: Any = module
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            found[f"{name}.base_layer.weight"] = (down, up, float(layer.scaling["default"]))
    return found


def stream_adapter_weights(
    model: nn.Module, zero_stage: int, keep: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The LoRA adapter under the names of PEFT's adapter_model.safetensors; all ranks iterate to the end."""
    for name, parameter in model.named_parameters():
        if re.search(r"\.lora_[AB]\.default\.weight$", name) is None:
            continue
        with gathered([parameter], zero_stage):
            if not keep:
                continue
            host = parameter.data.to("cpu", copy=True).contiguous()
        yield "base_model.model." + name.replace(".default.", "."), to_array(host)


def adapter_weights(model: nn.Module, zero_stage: int, keep: bool) -> dict[str, NDArray[Any]]:
    """All that `stream_adapter_weights` gives, at once."""
    return dict(stream_adapter_weights(model, zero_stage, keep))


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A file of tensors as `host_weights` names them."""
    from safetensors.torch import save_file

    save_file(dict(weights), path)


def read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def write_checkpoint(folder: Path, tensors: Mapping[str, NDArray[Any]], processing: Processing) -> None:
    """Hugging Face layout: weights as safetensors, configuration, processor, tokenizer, chat template."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in processing.path.iterdir():
        if file.suffix in SIDE_FILES and not file.name.endswith((".index.json", "manifest.json")):
            shutil.copyfile(file, folder / file.name)
    weights = {name: to_tensor(array) for name, array in tensors.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype_name(next(iter(tensors.values())))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_adapter(folder: Path, tensors: Mapping[str, NDArray[Any]], peft_model: Any, base: str) -> None:
    """PEFT layout of an adapter: its tensors and the configuration it was made with.

    `base`: `actors.checkpoints.weights_digest` of the model that it belongs to; on another one of the same
    shape, such as that with the adapter merged, it would be served without an error.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: to_tensor(array) for name, array in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(peft_model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    (folder / BASE).write_text(json.dumps({"weights": base}) + "\n", encoding="utf-8")
