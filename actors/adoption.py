"""How a weight version enters an engine: the whole model, or a LoRA adapter. Runs on the engine's thread."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.proof import LoadReport
from actors.transfer import Arrays
from pipelines.settings import LoraSettings
from pipelines.types import WeightVersion

# Received arrays are read-only shared memory; nothing here writes to them, and a copy would double the model.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Swap(Protocol):
    """Loads versions. `request` is what later requests carry to be served by the newest one, if anything."""

    request: Any

    def load(self, engine: Any, version: WeightVersion, arrays: Arrays) -> LoadReport: ...

    def reset(self, engine: Any) -> None: ...

    def close(self) -> None: ...


def reset_caches(engine: Any) -> None:
    """Forget all that older weights computed: prefix, multimodal and encoder caches.

    The encoder cache is reset here although a reload clears it in the worker: the scheduler would still count
    on it. Raises RuntimeError when the prefix cache could not be reset, which means a request is running.
    """
    if not engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache was not reset: a request still holds blocks of it")
    engine.reset_mm_cache()
    engine.reset_encoder_cache()


class FullWeights:
    """All tensors of the model, through vLLM's reload path, from memory."""

    request: Any = None

    def load(self, engine: Any, version: WeightVersion, arrays: Arrays) -> LoadReport:
        tensors = {name: as_tensor(array, version.manifest[name].dtype) for name, array in arrays.items()}
        tensors = with_tied_head(engine, tensors)
        handed = list(self.handed(tensors).items())
        (report,) = engine.collective_rpc("plumbline_load", args=(handed, tensors))
        return report

    def handed(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is given to vLLM; tests withhold something here."""
        return tensors

    def reset(self, engine: Any) -> None:
        reset_caches(engine)

    def close(self) -> None:
        """Nothing outlives the engine."""


class AdapterWeights:
    """A LoRA adapter over a base that stays as it is.

    Every version has its own number, name *and* folder: vLLM keys cached keys and values by name, and loads
    by folder, so a second use of either could serve an older version.
    """

    def __init__(self, settings: LoraSettings, model_path: str) -> None:
        self._settings = settings
        self._model_path = model_path
        self._root = Path(tempfile.mkdtemp(prefix="plumbline-adapters-"))
        self._count = 0
        self.request: Any = None

    def load(self, engine: Any, version: WeightVersion, arrays: Arrays) -> LoadReport:
        tensors = {name: as_tensor(array, version.manifest[name].dtype) for name, array in arrays.items()}
        self._count += 1
        request = self.add(engine, self._count, version.number, self.handed(tensors))
        if self.request is not None and self.request.lora_int_id != request.lora_int_id:
            engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path, ignore_errors=True)
        self.request = request
        arguments = (request.lora_int_id, tensors, self._settings.alpha / self._settings.rank)
        (report,) = engine.collective_rpc("plumbline_read_adapter", args=arguments)
        return report

    def handed(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is written for vLLM; tests withhold something here."""
        return tensors

    def add(self, engine: Any, count: int, number: int, tensors: Mapping[str, Tensor]) -> Any:
        """Write an adapter and load it; gives the `LoRARequest` that names it."""
        from vllm.lora.request import LoRARequest

        folder = self._root / f"version-{number}-load-{count}"
        self._write(folder, tensors)
        request = LoRARequest(folder.name, count, str(folder))
        engine.add_lora(request)
        return request

    def _write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": self._model_path,
            "r": self._settings.rank,
            "lora_alpha": self._settings.alpha,
            "target_modules": list(self._settings.targets),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")

    def reset(self, engine: Any) -> None:
        reset_caches(engine)

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


def as_tensor(array: NDArray[Any], dtype: str) -> Tensor:
    """A torch view of a received array; bfloat16 arrives as uint16 and is named by the manifest."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def with_tied_head(engine: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with an explicit output head where the checkpoint ties it to the embedding.

    Without it vLLM on CPU keeps the old head: its packed matrix is made anew only for layers that receive
    weights (0.32.0).
    """
    sent = dict(tensors)
    config = engine.model_config.hf_config
    tied = getattr(config, "tie_word_embeddings", False) or config.get_text_config().tie_word_embeddings
    if tied and "lm_head.weight" not in sent:
        embedding = next((name for name in tensors if name.endswith("embed_tokens.weight")), None)
        if embedding is not None:
            sent["lm_head.weight"] = tensors[embedding]
    return sent
