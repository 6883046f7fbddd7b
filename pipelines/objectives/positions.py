"""A sigmoid at every token position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Reads, log_ratios
from pipelines.objectives.terms import EdgeTerm


@dataclass(frozen=True)
class PositionPair(EdgeTerm):
    """mean over t of -log sigmoid(beta (v_w,t r_w,t - v_l,t r_l,t)), r_t the log-ratio of the t-th token.

    OPA-DPO's released loss, arXiv 2501.09695 (code read), which takes the sigmoid before any sum. v are the
    token weights of the named `spans` (its severities), 1 without. Positions count where both answers have a
    token: the code also averages over padding, each position worth log 2. An edge without such positions has
    weight 0. The edges' own margins are not read.

    Raises ValueError when `on` names one side of an edge.
    """

    beta: float = 0.1
    span: str | None = None

    @property
    def spans(self) -> frozenset[str]:
        return frozenset() if self.span is None else frozenset({self.span})

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        return torch.where(self._both(reads, table).any(-1), table.weight, 0.0)

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        tokens, both = log_ratios(reads), self._both(reads, table)
        winner, loser = tokens[table.winner], tokens[table.loser]
        if self.span is not None:
            one, other = table.spans[self.span]
            winner, loser = one * winner, other * loser
        losses = torch.where(both, -F.logsigmoid(self.beta * (winner - loser)), 0.0)
        return losses.sum(-1) / both.sum(-1).clamp(min=1)

    def _both(self, reads: Reads, table: EdgeTable) -> Tensor:
        return reads.mask[table.winner] & reads.mask[table.loser]
