"""Alignment via optimal transport: quantiles of margins instead of single pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Reads
from pipelines.objectives.links import LogSigmoid
from pipelines.objectives.terms import EdgeTerm


@dataclass(frozen=True)
class Aot(EdgeTerm):
    """The smoothed log-sigmoid of beta times differences of sorted values over the global batch.

    AOT, arXiv 2406.05882 (TRL's code read). `paired`: the k-th smallest log pi(w) - log pi(l) minus the k-th
    smallest of the reference; otherwise the k-th smallest rho_w minus the k-th smallest rho_l. Coupled; TRL
    sorts each micro-batch by itself. An edge takes part when its weight is positive, however large. The loss
    of the k-th values is booked to the comparison of the k-th policy (winner) value.

    Raises ValueError when `on` names one side of an edge, or beta is not positive.
    """

    beta: float = 0.1
    smoothing: float = 0.0
    paired: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"Aot(on={self.on!r}): beta must be positive, got {self.beta}")

    @property
    def coupled(self) -> bool:
        return True

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        return (table.weight > 0).to(table.weight.dtype)

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        counted = table.weight > 0
        policy, reference = (reads.tokens[view].sum(-1) for view in ("policy", "reference"))
        winner, loser = table.winner[counted], table.loser[counted]
        if self.paired:
            upper, lower = policy[winner] - policy[loser], reference[winner] - reference[loser]
        else:
            rho = policy - reference
            upper, lower = rho[winner], rho[loser]
        upper, order = upper.sort()
        losses = LogSigmoid(self.smoothing)(self.beta * (upper - lower.sort().values), self.beta)
        rows = torch.nonzero(counted).squeeze(-1)[order]
        return losses.new_zeros(len(counted)).index_add(0, rows, losses)
