"""What runs inside vLLM's worker: it takes weights by the life cycle of vLLM's own weight transfer.

vLLM 0.32 lends that life cycle (start, update, finish) to any transport that registers with it. Ours takes
tensors that are in the worker's memory already: they came through Ray's object store, over a shared disk or
by broadcast (`actors/collective.py`) and were verified, while the engine went on answering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.proof import LoadReport
from actors.transfer import WEIGHT_TRANSFER
from actors.witness import Named, Recorder, adapter_report, report


@dataclass
class NoHandshake(WeightTransferInitInfo):
    """There is nobody to agree with."""


@dataclass
class Whole(WeightTransferUpdateInfo):
    """All tensors of a version by their names in the checkpoint, taken one by one."""

    tensors: Iterable[tuple[str, Tensor]]


class FromMemory(WeightTransferEngine[NoHandshake, Whole]):
    """A whole model from tensors at hand."""

    init_info_cls = NoHandshake
    update_info_cls = Whole

    def init_transfer_engine(self, init_info: NoHandshake) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Whole) -> None:
        model: Any = self.model
        try:
            model.load_weights(update_info.tensors)
        except Exception:
            # vLLM would count the shards it has as part of the next version, and leave out as many of that.
            self.finish_weight_update()
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to close."""


WeightTransferEngineFactory.register_engine(WEIGHT_TRANSFER, FromMemory)


class Extension:
    """Mixed into vLLM's worker by name; names carry a prefix because the worker's own are many."""

    model_runner: Any
    vllm_config: Any
    start_weight_update: Any
    update_weights: Any
    finish_weight_update: Any
    _plumbline_encoded: int

    def plumbline_load(self, handed: Named, verified: Mapping[str, Tensor]) -> LoadReport:
        """Replace all weights by Hugging Face tensors and say what was written.

        `handed` is what vLLM gets, `verified` what it should be: the tensors whose digests were checked.
        """
        recorder = Recorder(verified)
        model = self.model_runner.get_model()
        with recorder:
            self.start_weight_update()
            self.update_weights({"tensors": recorder.items(model, handed)})
            self.finish_weight_update()
        return report(model, recorder.targets)

    def plumbline_count_images(self) -> int:
        """Images encoded so far; counting starts with the first call."""
        if not hasattr(self, "_plumbline_encoded"):
            self._plumbline_encoded = 0
            model = self.model_runner.get_model()
            embed = getattr(model, "embed_multimodal", None)
            if embed is not None:

                def counted(*args: Any, **kwargs: Any) -> Any:
                    outputs = embed(*args, **kwargs)
                    self._plumbline_encoded += len(outputs)
                    return outputs

                model.embed_multimodal = counted
        return self._plumbline_encoded

    def plumbline_zero_kv(self) -> None:
        """Overwrite all keys and values: NaN of broken weights stays in freed blocks, poisoning reads."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()

    def plumbline_read_adapter(self, adapter: int, sent: Mapping[str, Tensor], scaling: float) -> LoadReport:
        """Compare the adapter's slot, from which the kernels read, with the tensors of a PEFT checkpoint."""
        return adapter_report(self.model_runner.lora_manager._adapter_manager, adapter, sent, scaling)
