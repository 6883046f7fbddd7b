"""The models that the policy is compared with, as the stages of a recipe want them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actors import exporting, training
from actors.forward import Batch, Scorer
from actors.policy import Policy
from actors.processing import Processing
from pipelines.logprobs import Head
from pipelines.objectives.base import Objective
from pipelines.objectives.batch import Table
from pipelines.recipe import Stage
from pipelines.references import Blended, Harmonic, Reference
from pipelines.types import Comparison

FILE = "reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reference says of a batch of N rows with T scored tokens."""

    logps: Tensor  # [N, L], nats
    selected: tuple[Tensor, Head] | None = (
        None  # hidden states [T, width] and head, where features are needed
    )
    hidden: Tensor | None = None  # [N, L, width]


class Twin:
    """A frozen model of its own storage beside the policy."""

    def __init__(self, processing: Processing, policy: Policy) -> None:
        self._stage = policy.settings.zero_stage
        scorer = Scorer(training.load_model(processing, policy.settings.dtype), processing)
        self.model = scorer.model
        self.score: Callable[..., dict[str, Tensor]] = training.frozen(scorer, policy.settings)

    @property
    def head(self) -> Head:
        return self.model.get_output_embeddings()

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        return exporting.host_weights(self.model, self._stage, keep=keep)

    def take(self, weights: Mapping[str, Tensor], share: float = 1.0) -> None:
        """reference <- (1 - share) reference + share weights; all ranks call it."""
        exporting.copy_into(self.model, weights, self._stage, share)


class References:
    """Holds a copy only where a stage reads one and no adapter can be switched off in its place."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kind: Reference = Reference()
        self.twin: Twin | None = None
        self.changed = False  # whether the copy is no longer the checkpoint's
        self._others: dict[str, Twin] = {}

    def enter(self, stage: Stage) -> None:
        """Makes ready what the stage reads; all ranks call it."""
        self._kind = stage.reference
        if not stage.objective.reads_reference:
            return
        if self._policy.lora is None and self.twin is None:
            self.twin = Twin(self._policy.processing, self._policy)
        paths = self._kind.paths if isinstance(self._kind, Harmonic) else ()
        self._others = {path: self._others.get(path) or self._other(path) for path in paths}

    def _other(self, path: str) -> Twin:
        processing, own = Processing(path), self._policy.processing
        if processing.tokenizer.get_vocab() != own.tokenizer.get_vocab():
            raise ValueError(
                f"Harmonic reference {path!r}: its vocabulary is not that of {str(own.path)!r}; a harmonic "
                "mean needs models with one vocabulary. Leave it out, or score it as a part of a reward"
            )
        if own.has_vision and not processing.has_vision:
            raise ValueError(
                f"Harmonic reference {path!r}: it reads text only, but the run's model also reads images"
            )
        return Twin(processing, self._policy)

    @torch.no_grad()
    def read(
        self, batch: Batch, table: Table, comparisons: Sequence[Comparison], objective: Objective
    ) -> Reading | None:
        """None when no term of the objective reads a reference; all ranks call it together."""
        if not objective.reads_reference:
            return None
        needs = objective.needs
        wanted = set[str]()
        if needs & {"kl_forward", "kl_reverse"}:
            wanted.add("selected")
        if "reference_hidden" in needs:
            wanted.add("hidden")
        if self.twin is not None:
            found, head = self.twin.score(batch, wanted), self.twin.head
        else:
            with self._policy.without_adapter():
                found = self._policy(batch, wanted)
            head = self._policy.model.get_output_embeddings()
        logps = found["logps"]
        if isinstance(self._kind, Harmonic):
            others = [twin.score(batch)["logps"] for twin in self._others.values()]
            logps = _blend_harmonically(self._kind, [logps, *others], batch, opponents(table, comparisons))
        selected = (found["selected"], head) if "selected" in found else None
        return Reading(logps=logps, selected=selected, hidden=found.get("hidden"))

    def refresh(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """The reference becomes the policy, or `weights`; with LoRA it is the base, which merging moved."""
        if self._policy.lora is not None:
            return
        self.twin = self.twin or Twin(self._policy.processing, self._policy)
        self.twin.take(weights or dict(self._policy.model.named_parameters()))
        self.changed = True

    def after(self, step: int) -> None:
        """Blends after learner step `step` where the stage asks for it."""
        kind = self._kind
        if isinstance(kind, Blended) and self.twin is not None and step % kind.every == 0:
            self.twin.take(dict(self._policy.model.named_parameters()), kind.alpha)
            self.changed = True

    def weights(self, *, keep: bool = True) -> dict[str, Tensor] | None:
        """Whole weights of a reference that is no longer the checkpoint; all ranks call it."""
        return self.twin.weights(keep=keep) if self.twin is not None and self.changed else None

    def save(self, folder: Path, first: bool) -> None:
        weights = self.weights(keep=first)
        if weights is not None and first:
            exporting.write_weights(folder / FILE, weights)

    def load(self, folder: Path) -> None:
        self.changed = (folder / FILE).exists()
        if self.changed:
            self.refresh(exporting.read_weights(folder / FILE))


def opponents(table: Table, comparisons: Sequence[Comparison]) -> list[int | None]:
    """For each cell, the other side of the first edge that it takes part in."""
    found: list[int | None] = [None] * len(table.cells)
    for rows, comparison in zip(table.index, comparisons, strict=True):
        for edge in comparison.preferences:
            winner, loser = rows[edge.winner], rows[edge.loser]
            for own, other in ((winner, loser), (loser, winner)):
                if found[own] is None:
                    found[own] = other
    return found


def _blend_harmonically(
    kind: Harmonic, models: Sequence[Tensor], batch: Batch, opposing: Sequence[int | None]
) -> Tensor:
    """[N, L] of the first model, each scored token moved by the same part of what the answer moves."""
    sums = torch.stack([tokens.sum(-1) for tokens in models])
    other = [row if row is not None else -1 for row in opposing]
    other += [-1] * (sums.shape[1] - len(other))  # rows of padding
    whole = harmonic(sums, kind.shares, kind.clip, torch.tensor(other, device=sums.device))
    mask = torch.zeros_like(models[0], dtype=torch.bool)
    mask[batch.targets.row, batch.targets.column] = True
    share = (whole - sums[0]) / mask.sum(-1).clamp(min=1)
    return models[0] + share.unsqueeze(-1) * mask


def harmonic(sums: Tensor, shares: Sequence[float], clip: float | None, other: Tensor) -> Tensor:
    """log of 1 / sum_k alpha_k / pi_k(y) for each answer, [N], nats; see `pipelines.references.Harmonic`.

    `sums` [K, N]: log pi_k(y), the run's model first. `other` [N]: the answer that each is compared with, -1
    for none (then both sides count alike). b_side is the mean of log pi_k over the models.
    """
    log_shares = sums.new_tensor([math.log(share) if share > 0 else -math.inf for share in shares])
    mean = -(log_shares.unsqueeze(-1) - sums).logsumexp(0)
    if clip is None:
        return mean
    base, size = sums[0], sums.mean(0).abs()
    opposing = torch.where(other >= 0, size[other.clamp(min=0)], size)
    part = torch.where(size + opposing > 0, size / (size + opposing), 0.5)
    return torch.maximum(torch.minimum(mean, base * (1 - clip * part)), base * (1 + clip * part))
