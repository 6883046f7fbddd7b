"""The policy of one rank: the model under training, its adapter and the DeepSpeed engine around it.

It can be rebuilt from whole weights, with another adapter or other trained parameters. That is how stages of
a recipe meet: the optimizer of a rebuilt policy starts anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from actors import checkpoints, exporting, training
from actors.forward import Batch, Scorer
from actors.processing import Processing
from pipelines.logprobs import Head
from pipelines.settings import LearnerSettings, LoraSettings


class Policy:
    """`engine` scores and trains; `model` is the Hugging Face model inside it, LoRA layers included."""

    engine: Any
    model: Any
    adapter: Any  # the PEFT model around it, or None

    def __init__(self, processing: Processing, settings: LearnerSettings, seed: int) -> None:
        self.processing, self.settings, self.seed = processing, settings, seed
        self.lora: LoraSettings | None = settings.lora
        self.trainable: tuple[str, ...] = ()
        self.merged = False  # whether the base is no longer the checkpoint's
        self.names: dict[str, str] = {}
        self.engine = None

    def build(
        self,
        weights: Mapping[str, Tensor] | None = None,
        trainable: Sequence[str] = (),
        adapter: Mapping[str, Tensor] | None = None,
    ) -> None:
        """(Re)builds the engine from the checkpoint, or from weights of the base and of its adapter.

        Without `adapter` a new one starts, which changes nothing yet. All ranks call it, with equal tensors.
        """
        if self.engine is not None:
            self.engine.destroy()
            self.engine = self.model = self.adapter = None
        settings = self.settings
        model = training.load_model(self.processing, settings.dtype)
        self.names = self.names or exporting.checkpoint_names(model, self.processing.path)
        if weights is not None:
            exporting.copy_into(model, weights, 0)
        self.model, self.adapter = model, None
        if self.lora:
            self.adapter = training.add_adapter(model, self.lora, self.seed, self.processing.has_vision)
            with torch.no_grad():
                for name, tensor in (adapter or {}).items():
                    model.get_parameter(name).copy_(tensor)
        self.trainable = tuple(trainable)
        training.freeze(model, self.trainable)
        self.engine = training.start_engine(Scorer(model, self.processing), settings)

    @cached_property
    def origin(self) -> str:
        """Digest of the weights that the run started from, as they lie on the disk."""
        return checkpoints.weights_digest(self.processing.path)

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.device)

    @property
    def width(self) -> int:
        """Of the last hidden states."""
        return int(self.processing.text_config.hidden_size)

    def __call__(
        self, batch: Batch, needs: Collection[str] = (), reference: tuple[Tensor, Head] | None = None
    ) -> dict[str, Tensor]:
        """See `Scorer`; all ranks call it together."""
        return self.engine(batch, needs, reference)

    def without_adapter(self) -> Any:
        """A context in which the policy is its base."""
        return self.adapter.disable_adapter() if self.adapter is not None else nullcontext()

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole weights in host memory, adapter merged; all ranks call it."""
        return exporting.host_weights(self.model, self.settings.zero_stage, keep=keep)

    def factors(self) -> dict[str, Tensor]:
        """The adapter in host memory, under its names in memory; all ranks call it."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                with training.gathered([parameter], self.settings.zero_stage):
                    found[name] = parameter.data.to("cpu", copy=True)
        return found

    def base(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole weights in host memory without the adapter; all ranks call it."""
        return exporting.host_weights(self.model, self.settings.zero_stage, keep=keep, merged=False)
