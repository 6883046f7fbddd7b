"""How an answer's token log-probabilities become one number per side of an edge."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Reads, Sides

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Base: scores each cell by itself. `against`: the view that is subtracted, None for reference-free."""

    against: str | None = "reference"

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"} | ({self.against} if self.against else set()))

    @property
    def spans(self) -> frozenset[str]:
        return frozenset()

    def tokens(self, reads: Reads) -> Tensor:
        """[N, L] log pi, minus the other view, nats; 0 outside the mask."""
        policy = reads.tokens["policy"]
        return policy - reads.tokens[self.against] if self.against else policy

    def cells(self, reads: Reads) -> Tensor:
        """[N] score of each cell, nats."""
        raise TypeError(f"{type(self).__name__} does not score a cell by itself")

    def sides(self, reads: Reads, table: EdgeTable) -> Sides:
        """Scores of winners and losers, both [E], nats."""
        scores = self.cells(reads)
        return scores[table.winner], scores[table.loser]


@dataclass(frozen=True, kw_only=True)
class Sum(Scoring):
    """The sum over tokens: rho = log pi - log pi_ref (DPO, arXiv 2305.18290), or log pi alone (CPO)."""

    def cells(self, reads: Reads) -> Tensor:
        return self.tokens(reads).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Mean(Scoring):
    """The mean over an answer's tokens (SimPO with against=None; IPO as in TRL; LN-DPO)."""

    def cells(self, reads: Reads) -> Tensor:
        return self.tokens(reads).sum(-1) / reads.lengths.clamp(min=1)


@dataclass(frozen=True)
class FDivergence(Scoring):
    """f'(u) of the ratio u = exp(rho): f-DPO, arXiv 2309.16240 (TRL's code read).

    "reverse_kl" rho (DPO), "forward_kl" 1 - exp(-rho), "js" log 2 + log sigmoid(rho), "alpha"
    (exp((a - 1) rho) - 1) / (a - 1), its exponent at most 80, and rho at a = 1. `normalised` divides the
    score by the answer's tokens, as TRL's IPO and sigmoid_norm do.
    """

    kind: Divergence = "js"
    alpha: float = 0.5
    normalised: bool = False

    def cells(self, reads: Reads) -> Tensor:
        scores = self._scores(self.tokens(reads).sum(-1))
        return scores / reads.lengths.clamp(min=1) if self.normalised else scores

    def _scores(self, rho: Tensor) -> Tensor:
        if self.kind == "forward_kl":
            return -torch.expm1(-rho)
        if self.kind == "js":
            return math.log(2) + F.logsigmoid(rho)
        power = self.alpha - 1
        if self.kind == "reverse_kl" or abs(power) < 1e-6:
            return rho
        return torch.expm1((power * rho).clamp(max=80.0)) / power


@dataclass(frozen=True)
class Alpha(Scoring):
    """(1 - p^-a) / a with p the geometric mean of the tokens' probabilities; a -> 0 is the mean log-prob.

    AlphaPO, arXiv 2501.03884 (TRL's code read).
    """

    alpha: float = 0.25
    against: str | None = field(default=None, kw_only=True)

    def cells(self, reads: Reads) -> Tensor:
        mean = self.tokens(reads).sum(-1) / reads.lengths.clamp(min=1)
        return -torch.expm1(-self.alpha * mean) / self.alpha if self.alpha else mean


@dataclass(frozen=True)
class LogOdds(Scoring):
    """log odds of p, the geometric mean of the tokens' probabilities: m - log(1 - exp(m)), m = log p.

    ORPO, arXiv 2403.07691 (TRL's code read). m is kept below -1e-6, where the odds would be infinite.
    """

    against: str | None = field(default=None, kw_only=True)

    def cells(self, reads: Reads) -> Tensor:
        mean = (self.tokens(reads).sum(-1) / reads.lengths.clamp(min=1)).clamp(max=-1e-6)
        return mean - torch.log(-torch.expm1(mean))


@dataclass(frozen=True, kw_only=True)
class PerEdge(Scoring):
    """Base: token weights that depend on the opponent."""

    def weighted(self, tokens: Tensor, weights: Sides, table: EdgeTable) -> Sides:
        winner, loser = weights
        return (winner * tokens[table.winner]).sum(-1), (loser * tokens[table.loser]).sum(-1)


@dataclass(frozen=True)
class Spans(PerEdge):
    """sum_t v_t log-ratio_t with v = 1 outside the named span and `weight` inside; `normalised` by sum_t v_t.

    CHiP's segment term, arXiv 2501.16629 (code and third-party note read), on the tokens that differ between
    the sides: the released form has weight 4 and no normaliser; the paper divides by |y| + w |y_c|, which is
    weight = 1 + w, normalised (inferred). Graded spans s_t give v = 1 + (weight - 1) s_t.
    """

    name: str
    weight: float = 1.0
    normalised: bool = False

    @property
    def spans(self) -> frozenset[str]:
        return frozenset({self.name})

    def sides(self, reads: Reads, table: EdgeTable) -> Sides:
        one, other = table.spans[self.name]
        weights = (1 + (self.weight - 1) * one, 1 + (self.weight - 1) * other)
        winner, loser = self.weighted(self.tokens(reads), weights, table)
        if not self.normalised:
            return winner, loser
        norms = self.weighted(reads.mask.to(winner.dtype), weights, table)
        return winner / norms[0].clamp(min=1e-6), loser / norms[1].clamp(min=1e-6)


@dataclass(frozen=True)
class OnlySpans(PerEdge):
    """sum_t s_t log-ratio_t over the named span, with its weights.

    RRPO (code and third-party note read: the concepts that differ); OPA-DPO's severities; fine-grained edits
    (inferred).
    """

    name: str

    @property
    def spans(self) -> frozenset[str]:
        return frozenset({self.name})

    def sides(self, reads: Reads, table: EdgeTable) -> Sides:
        return self.weighted(self.tokens(reads), table.spans[self.name], table)


@dataclass(frozen=True)
class StepWeighted(OnlySpans):
    """Every token's log-ratio times the weight of its reasoning step, made beside the edge.

    TPO on trees (paper from a third-party note, the weight's direction from memory): steps that both answers
    share weigh less.
    """


@dataclass(frozen=True)
class Desensitised(PerEdge):
    """sum_{t <= m} + alpha sum_{t > m} of log-ratios, m = min(|w|, |l|): what one answer has beyond the
    other's length counts less.

    LD-DPO, arXiv 2409.06411 (TRL's code read). alpha = 1 is DPO. `normalised` divides by all of an answer's
    tokens, as TRL does for IPO.
    """

    alpha: float = 0.5
    normalised: bool = False

    def sides(self, reads: Reads, table: EdgeTable) -> Sides:
        shared = torch.minimum(reads.lengths[table.winner], reads.lengths[table.loser])[:, None]
        number = reads.mask.cumsum(-1)  # 1-based among the scored tokens

        def weights(cell: Tensor) -> Tensor:
            return 1 - (1 - self.alpha) * (number[cell] > shared)

        winner, loser = self.weighted(
            self.tokens(reads), (weights(table.winner), weights(table.loser)), table
        )
        if not self.normalised:
            return winner, loser
        lengths = reads.lengths.clamp(min=1)
        return winner / lengths[table.winner], loser / lengths[table.loser]
