"""Factors of an edge's loss; none of them carries a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Feature, Reads, Statistic, unique
from pipelines.objectives.plugs import Weighting
from pipelines.objectives.terms import known


@dataclass(frozen=True)
class Wpo(Weighting):
    """omega_w omega_l, omega = exp(mean_t [log pi(y_t) - log sum_v pi(v)^2]): how on-policy the pair is.

    WPO, arXiv 2406.11827, equation 2 (TRL's code read). Needs the collision log-probability.
    """

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"collision"})

    def __call__(self, reads: Reads, table: EdgeTable) -> Tensor:
        excess = torch.where(reads.mask, reads.tokens["policy"] - reads.features["collision"], 0.0)
        mean = excess.sum(-1) / reads.lengths.clamp(min=1)
        return torch.exp(mean[table.winner] + mean[table.loser])


@dataclass(frozen=True)
class Confidence(Weighting):
    """A score part of the winner, used as it is; an edge whose winner lacks it has weight 0."""

    part: str = "confidence"

    def known(self, table: EdgeTable) -> Tensor:
        return known(table.part(self.part)[0])

    def __call__(self, reads: Reads, table: EdgeTable) -> Tensor:
        return table.part(self.part)[0].nan_to_num()


@dataclass(frozen=True)
class ZScore(Weighting):
    """clip(center + z, low, high), z = (s - mean) / std of a score part of the winner over the run so far.

    MMedPO, arXiv 2412.06141 (code and third-party note read: clipped z-scores; centre and bounds are
    inferred). Before there is a spread, z = 0. An edge whose winner lacks the part has weight 0.
    """

    part: str = "value"
    center: float = 1.0
    low: float = 0.0
    high: float = 2.0

    @property
    def name(self) -> str:
        return f"z_{self.part}"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Statistic(name=self.name, kind="mean"),)

    def known(self, table: EdgeTable) -> Tensor:
        return known(table.part(self.part)[0])

    def __call__(self, reads: Reads, table: EdgeTable) -> Tensor:
        mean = reads.carry.get(f"{self.name}/mean", 0.0)
        variance = reads.carry.get(f"{self.name}/square", 0.0) - mean**2
        scores = table.part(self.part)[0].nan_to_num()
        z = (scores - mean) / math.sqrt(variance) if variance > 1e-12 else torch.zeros_like(scores)
        return (self.center + z).clamp(self.low, self.high)

    def observe(self, reads: Reads, table: EdgeTable) -> Mapping[str, tuple[Tensor, Tensor]]:
        counted = (table.weight > 0) & self.known(table)
        scores = table.part(self.part)[0][counted].double()
        return {
            f"{self.name}/mean": (scores.sum(), counted.sum()),
            f"{self.name}/square": (scores.square().sum(), counted.sum()),
        }


@dataclass(frozen=True)
class LambdaGap(Weighting):
    """|2^v_w - 2^v_l| |1 / log(1 + rank_w) - 1 / log(1 + rank_l)| with ranks among all cells on the
    comparison's edges of the name, the best score v first.

    LambdaLoss as in LiPO and tree TPO (from memory): pairs that would reorder the head of the list weigh
    most, ties nothing. Scores should be of order 1. An edge with an unscored side has weight 0.
    """

    part: str = "value"

    def known(self, table: EdgeTable) -> Tensor:
        return known(*table.part(self.part))

    def __call__(self, reads: Reads, table: EdgeTable) -> Tensor:
        scores = torch.cat(table.part(self.part))
        cells, place = unique(torch.cat([table.winner, table.loser]))
        value = scores.new_zeros(len(cells)).scatter(0, place, scores)
        owner = place.new_zeros(len(cells)).scatter(0, place, table.owner.repeat(2))
        better = (owner[:, None] == owner) & (value > value[:, None])
        discount = (1 / torch.log(2.0 + better.sum(-1).to(value.dtype)))[place]
        gain = torch.exp2(scores)
        (gain_w, gain_l), (discount_w, discount_l) = gain.chunk(2), discount.chunk(2)
        return ((gain_w - gain_l).abs() * (discount_w - discount_l).abs()).nan_to_num()
