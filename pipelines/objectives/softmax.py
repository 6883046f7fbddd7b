"""One softmax over a winner and all losers that share it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Reads, Term, nothing, per_comparison
from pipelines.objectives.scoring import Scoring, Sum


@dataclass(frozen=True)
class Softmax(Term):
    """log(1 + sum_j exp(beta (s_j - s_w) + margin_j)) for each winner, over the losers j of its edges.

    AdaViP, arXiv 2504.15619 (third-party note): losers are another answer under the clean media and the same
    answer under a damaged one; the gradient leans to the harder of the two. With one loser it is DPO. Edges
    of all names in `on` take part; an edge of weight 0 does not, and a winner weighs as its heaviest edge.
    """

    on: str | tuple[str, ...] = ("text", "media")
    beta: float = 0.1
    scoring: Scoring = field(default_factory=Sum)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"Softmax(on={self.on!r}): beta must be positive, got {self.beta}")

    @property
    def edges(self) -> frozenset[str]:
        return frozenset({self.on} if isinstance(self.on, str) else self.on)

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views

    @property
    def spans(self) -> frozenset[str]:
        return self.scoring.spans

    def weight(self, reads: Reads) -> Tensor:
        tables = self._tables(reads)
        if not tables:
            return nothing(reads)
        weight, owner = self._cells(reads, tables)
        return per_comparison(weight, owner, reads.size)

    def value(self, reads: Reads) -> Tensor:
        tables = self._tables(reads)
        if not tables:
            return nothing(reads)
        sides = [self.scoring.sides(reads, table) for table in tables]
        margins = torch.cat([table.margin for table in tables])
        gaps = torch.cat([self.beta * (loser - winner) for winner, loser in sides]) + margins
        gaps = torch.where(torch.cat([table.weight for table in tables]) > 0, gaps, -torch.inf)
        winner = torch.cat([table.winner for table in tables])
        top = gaps.new_zeros(len(reads.lengths)).scatter_reduce(0, winner, gaps.detach(), "amax")
        total = (-top).exp().index_add(0, winner, (gaps - top[winner]).exp())
        weight, owner = self._cells(reads, tables)
        return per_comparison(weight * (top + total.log()), owner, reads.size)

    def _tables(self, reads: Reads) -> list[EdgeTable]:
        return [reads.edges[name] for name in sorted(self.edges) if name in reads.edges]

    def _cells(self, reads: Reads, tables: list[EdgeTable]) -> tuple[Tensor, Tensor]:
        """(weight, owner) of each cell, [N]: weight 0 where it wins nothing."""
        winner = torch.cat([table.winner for table in tables])
        owner, weight = (torch.cat([getattr(t, name) for t in tables]) for name in ("owner", "weight"))
        heaviest = weight.new_zeros(len(reads.lengths)).scatter_reduce(0, winner, weight, "amax")
        return heaviest, owner.new_zeros(len(reads.lengths)).scatter(0, winner, owner)
