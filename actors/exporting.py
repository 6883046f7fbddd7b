"""The learner's weights under the names of its checkpoint, whole on rank 0 however they are sharded."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.processing import Processing
from actors.training import gathered
from pipelines.checkpoint import NotACheckpoint

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


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy in host memory; bfloat16, which numpy lacks, travels as its 16 bits (uint16)."""
    host = tensor.detach().to("cpu", copy=True).contiguous()
    return host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()


def dtype_name(array: NDArray[Any]) -> str:
    """The name that manifests use: no weight is uint16, so that dtype stands for bfloat16."""
    return "bfloat16" if array.dtype == np.uint16 else str(array.dtype)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The inverse of `to_array`."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _plain(name: str) -> str:
    """The name a parameter had before the adapter wrapped its layer."""
    return name.replace(".base_layer.", ".")


def whole_weights(
    model: nn.Module, names: Mapping[str, str], zero_stage: int, keep: bool
) -> dict[str, NDArray[Any]]:
    """All weights under checkpoint names; LoRA layers merged as W + scaling B A, in float32, then rounded.

    All ranks call it; only where `keep` is set does it return anything. Merging rounds to the model's dtype,
    so in bfloat16 the merged weights differ from base and adapter by up to half a unit in the last place.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    deltas = _adapted(model)
    whole: dict[str, NDArray[Any]] = {}
    for name, parameter in parameters.items():
        if _plain(name) not in names:
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
            whole[names[_plain(name)]] = to_array(tensor)
    return whole


def _adapted(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter, float]]:
    """Weight name -> (A, B, scaling) of each layer with an adapter."""
    found: dict[str, tuple[nn.Parameter, nn.Parameter, float]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:  # pyright: ignore[reportOperatorIssue]
            layer: Any = module
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            found[f"{name}.base_layer.weight"] = (down, up, float(layer.scaling["default"]))
    return found


def adapter_weights(model: nn.Module, zero_stage: int, keep: bool) -> dict[str, NDArray[Any]]:
    """The LoRA adapter under the names of PEFT's adapter_model.safetensors; all ranks call it."""
    adapter: dict[str, NDArray[Any]] = {}
    for name, parameter in model.named_parameters():
        if re.search(r"\.lora_[AB]\.default\.weight$", name) is None:
            continue
        with gathered([parameter], zero_stage):
            if keep:
                adapter["base_model.model." + name.replace(".default.", ".")] = to_array(parameter.data)
    return adapter


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


def write_adapter(folder: Path, tensors: Mapping[str, NDArray[Any]], peft_model: Any) -> None:
    """PEFT layout of an adapter: its tensors and the configuration it was made with."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: to_tensor(array) for name, array in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(peft_model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))
