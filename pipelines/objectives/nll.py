"""Likelihood of answers, in its three reductions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, Reads
from pipelines.objectives.terms import CellTerm, Reduction, reduced, reduced_weights


@dataclass(frozen=True)
class ExpReward:
    """exp(r / T), or sigmoid(r / T), of each cell's score r: reward-weighted regression (the on-policy
    study's code read, arXiv 2404.14367). A cell without a score has weight 0."""

    temperature: float = 1.0
    part: str = "value"
    kind: Literal["exp", "sigmoid"] = "exp"

    def __call__(self, cells: CellTable) -> Tensor:
        """[C], nan without a score."""
        scaled = cells.part(self.part) / self.temperature
        return scaled.exp() if self.kind == "exp" else torch.sigmoid(scaled)


@dataclass(frozen=True)
class Nll(CellTerm):
    """-log pi of one side of an edge, or of a role.

    "sequence_mean": the mean over an answer's tokens, then over answers (OpenRLHF's RPO).
    "sum": the sum over tokens, then the mean over answers (released RPO, arXiv 2405.16436, code read: eta *
    beta * Nll(..., "sum")). "batch_tokens": the mean over all tokens of the batch, so that long answers weigh
    more (TRL's `sft`, CPO and InternVL's MPO, there over the chosen answers; code read).

    `weighting` multiplies each answer's loss and is not part of the denominator.
    """

    reduction: Reduction = "sequence_mean"
    weighting: ExpReward | None = None

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        weights = reduced_weights(cells.weight, reads.lengths[cells.cell], self.reduction)
        return torch.where(self.weighting(cells).isnan(), 0.0, weights) if self.weighting else weights

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        tokens, lengths = reads.tokens["policy"][cells.cell], reads.lengths[cells.cell]
        losses = -reduced(tokens, lengths, self.reduction)
        return losses * self.weighting(cells).nan_to_num() if self.weighting else losses
