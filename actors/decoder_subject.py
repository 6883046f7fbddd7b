"""How weight versions enter a model in torch, and what its prover reads of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from actors import exporting
from actors.adoption import as_tensor
from actors.cached_model import CachedModel, Context
from actors.proof import CacheReading, LoadReport
from actors.transfer import Arrays
from pipelines.types import Canary, WeightVersion

T = TypeVar("T")
Alone = Callable[..., Awaitable[T]]  # runs a function while nothing else uses the model


class WeightLoader:
    """Copies versions into a model. `model` may hold a LoRA adapter, injected by PEFT."""

    def __init__(self, model: Any, path: Path) -> None:
        self._parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._model = model
        self._path = path
        self._names: Mapping[str, str] | None = None

    def load(self, version: WeightVersion, arrays: Arrays) -> LoadReport:
        """Every tensor into its parameter; then reads back what each parameter holds."""
        sent = {name: as_tensor(array, version.manifest[name].dtype) for name, array in arrays.items()}
        targets = self._adapter() if version.adapter else self._whole()
        missing = {name: tensor.numel() for name, tensor in targets.items() if name not in sent}
        with torch.no_grad():
            for name in targets.keys() & sent.keys():
                targets[name].copy_(sent[name])
        elements = sum(tensor.numel() for tensor in targets.values())
        return LoadReport(
            elements=elements,
            written=elements - sum(missing.values()),
            missing=missing,
            stale=tuple(self._stale(targets, sent)),
        )

    def _whole(self) -> dict[str, Tensor]:
        """Checkpoint name -> parameter."""
        if self._names is None:
            self._names = exporting.checkpoint_names(self._model, self._path)
        return {stored: self._parameters[name] for name, stored in self._names.items()}

    def _adapter(self) -> dict[str, Tensor]:
        """PEFT's name of an adapter tensor -> parameter."""
        return {
            f"base_model.model.{name.replace('.default.', '.')}": tensor
            for name, tensor in self._parameters.items()
            if ".lora_" in name
        }

    def _stale(self, targets: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> list[str]:
        """Parameters that hold something else than what was sent, a tied head included, and tensors that no
        parameter took."""
        wrong = [n for n, tensor in targets.items() if n in sent and not _same(tensor, sent[n])]
        wrong += sorted(sent.keys() - targets.keys())
        embedding = self._model.get_input_embeddings().weight
        tied = getattr(self._model.config.get_text_config(), "tie_word_embeddings", False)
        if tied and not torch.equal(self._model.get_output_embeddings().weight, embedding):
            wrong.append("lm_head.weight")
        return wrong


def _same(held: Tensor, sent: Tensor) -> bool:
    return torch.equal(held, sent.to(held.device, held.dtype))


class DecoderSubject:
    """A model in torch as the prover sees it. `alone` runs a function while nothing else uses the model."""

    def __init__(
        self, name: str, dtype: str, model: CachedModel, loader: WeightLoader, alone: Alone[Any]
    ) -> None:
        self.name, self.dtype = name, dtype
        self._model, self._loader, self._alone = model, loader, alone

    async def load(self, version: WeightVersion, tensors: Arrays) -> LoadReport:
        return await self._alone(self._loader.load, version, tensors)

    async def forget(self, tainted: bool) -> None:
        """Nothing that weights have computed outlives a request; `read_caches` looks whether that is so."""

    async def logprob(self, canary: Canary) -> float:
        return sum(await self._alone(self.token_logps, canary))

    async def read_caches(self, canary: Canary) -> CacheReading:
        return await self._alone(self._read, canary)

    def token_logps(self, canary: Canary) -> list[float]:
        """Log-probability of each token of a canary's answer, nats."""
        encoded = self._model.processing.encode(canary.prompt, canary.media)
        context = Context(encoded=encoded, answer=canary.tokens)
        [logits], _ = self._model.read([context])
        return answer_logps(logits, canary.tokens)

    def _read(self, canary: Canary) -> CacheReading:
        encoded = self._model.processing.encode(canary.prompt, canary.media)
        before = self._model.pictures_read
        _, growing = self._model.read([Context(encoded=encoded)])
        shown = len(set(canary.prompt.media))
        read = self._model.pictures_read - before
        return CacheReading(
            cached_tokens=growing.cache.get_seq_length() - len(encoded.input_ids),
            media=shown,
            encoded=read,
            media_hits=max(0, shown - read),
        )


def answer_logps(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token, from the logits that predict them, [at least tokens, vocabulary]."""
    own = logits[: len(tokens)].log_softmax(dim=-1)
    return own.gather(-1, torch.tensor(tokens, device=own.device)[:, None]).squeeze(-1).tolist()
