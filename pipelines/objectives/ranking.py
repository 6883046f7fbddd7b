"""Lists of candidates: Plackett-Luce, weighted and skipped pairs, PRO."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, EdgeTable, Reads, Term, nothing, per_comparison
from pipelines.objectives.pair import Pair
from pipelines.objectives.plugs import Weighting
from pipelines.objectives.scoring import Mean, Scoring, Sum
from pipelines.objectives.weightings import LambdaGap


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All pairs (i, j) of a comparison where i ranks before j; P pairs."""

    table: EdgeTable  # scores: those of the order
    place: Tensor  # [P] int64, of i among all listed candidates: equal for equal i
    apart: Tensor  # [P] int64, places from i to j
    listed: int  # candidates in all

    def widest(self, values: Tensor) -> Tensor:
        """[listed] the largest of the values of each i, at least 0."""
        return values.new_zeros(self.listed).scatter_reduce(0, self.place, values, "amax")

    def after(self, z: Tensor) -> Tensor:
        """[P], summing to sum_i log(1 + sum_{j after i} exp(z_ij))."""
        top = self.widest(z.detach())
        total = (-top).exp().index_add(0, self.place, (z - top[self.place]).exp())
        return torch.where(self.apart == 1, (top + total.log())[self.place], 0.0)  # once for each i


@dataclass(frozen=True)
class Ranked(Term):
    """Base: one loss per comparison over the cells of a role, best first, or of several roles in that order.

    Cells of a role are ordered by score (`part`), ties as they come; a cell without a score, or of weight 0,
    is left out. A comparison with fewer than two has weight 0, any other weight 1.
    """

    on: str | tuple[str, ...]
    part: str = field(default="value", kw_only=True)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.on} if isinstance(self.on, str) else self.on)

    def pairs(self, reads: Reads) -> Pairs | None:
        """None when no comparison of the micro-batch has such cells."""
        cells = self._cells(reads)
        if cells is None:
            return None
        score = cells.part(self.part)
        rows = torch.nonzero((cells.weight > 0) & ~score.isnan()).squeeze(-1)
        rows = rows[torch.sort(-score[rows], stable=True).indices]
        rows = rows[torch.sort(cells.owner[rows], stable=True).indices]
        place = torch.arange(len(rows), device=rows.device)
        owner = cells.owner[rows]
        ahead = (owner[:, None] == owner) & (place[:, None] < place)
        first, second = torch.nonzero(ahead, as_tuple=True)
        zeros, ones = torch.zeros(len(first), device=rows.device), torch.ones(len(first), device=rows.device)
        table = EdgeTable(
            winner=cells.cell[rows[first]],
            loser=cells.cell[rows[second]],
            owner=owner[first],
            key=torch.zeros_like(first),
            probability=ones,
            margin=zeros,
            weight=ones,
            scores={self.part: (score[rows[first]], score[rows[second]])},
        )
        return Pairs(table=table, place=first, apart=second - first, listed=len(rows))

    def _cells(self, reads: Reads) -> CellTable | None:
        if isinstance(self.on, str):
            return reads.roles.get(self.on)
        tables = [(i, reads.roles[name]) for i, name in enumerate(self.on) if name in reads.roles]
        if not tables:
            return None
        order = [torch.full_like(table.weight, -place) for place, table in tables]
        return CellTable(
            cell=torch.cat([table.cell for _, table in tables]),
            owner=torch.cat([table.owner for _, table in tables]),
            weight=torch.cat([table.weight for _, table in tables]),
            scores={self.part: torch.cat(order)},
        )

    def weight(self, reads: Reads) -> Tensor:
        pairs = self.pairs(reads)
        if pairs is None:
            return nothing(reads)
        return per_comparison(pairs.table.weight, pairs.table.owner, reads.size).clamp(max=1)

    def value(self, reads: Reads) -> Tensor:
        pairs = self.pairs(reads)
        if pairs is None:
            return nothing(reads)
        return per_comparison(self.losses(reads, pairs), pairs.table.owner, reads.size)

    def losses(self, reads: Reads, pairs: Pairs) -> Tensor:
        """[P], to be summed."""
        raise TypeError(f"{type(self).__name__} does not define its loss")


@dataclass(frozen=True)
class Scored(Ranked):
    """Base: candidates have scores beta s of the policy. Raises ValueError when beta is not positive."""

    beta: float = 0.1
    scoring: Scoring = field(default_factory=Sum)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"{type(self).__name__}(on={self.on!r}): beta must be positive, got {self.beta}")

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views

    def paired(self, reads: Reads, pairs: Pairs, weighting: Weighting | None = None) -> Tensor:
        """[P] -log sigmoid(beta (s_i - s_j))."""
        return Pair(beta=self.beta, scoring=self.scoring, weighting=weighting).losses(reads, pairs.table)


@dataclass(frozen=True)
class PlackettLuce(Scored):
    """sum_i log(1 + sum_{j after i} exp(beta (s_j - s_i))): the likelihood of the order.

    RankList (abstract read, formula inferred); LPOI's list of media with the key object hidden more and more,
    on = roles from the clean to the most damaged (third-party note). With two candidates it is RankNet, DPO.
    """

    def losses(self, reads: Reads, pairs: Pairs) -> Tensor:
        first, second = self.scoring.sides(reads, pairs.table)
        return pairs.after(self.beta * (second - first))


@dataclass(frozen=True)
class Lambda(Scored):
    """sum over pairs of lambda_ij * -log sigmoid(beta (s_i - s_j)), lambda as in `LambdaGap`; ties weigh 0.

    LiPO's loss as tree TPO uses it (paper from a third-party note, lambda from memory; TPO's released loss
    has the wrong sign and is not followed). For step weights, put all pairs on edges and use
    `Pair(weighting=LambdaGap(), scoring=StepWeighted(...))`.
    """

    def losses(self, reads: Reads, pairs: Pairs) -> Tensor:
        return self.paired(reads, pairs, LambdaGap(self.part))


@dataclass(frozen=True)
class Skip(Scored):
    """sum over pairs that are k places apart of -log sigmoid(beta (s_i - s_j)); k = 1: neighbours.

    RankList's local and skip-wise constraints (abstract read, formula inferred); k grows with the stages.
    Pairs whose scores differ by less than `min_gap` are left out.
    """

    k: int = 1
    min_gap: float = 0.0

    def pairs(self, reads: Reads) -> Pairs | None:
        pairs = super().pairs(reads)
        if pairs is None:
            return None
        one, other = pairs.table.part(self.part)
        counts = (pairs.apart == self.k) & (one - other >= self.min_gap)
        return replace(pairs, table=replace(pairs.table, weight=counts.to(pairs.table.weight.dtype)))

    def losses(self, reads: Reads, pairs: Pairs) -> Tensor:
        return pairs.table.weight * self.paired(reads, pairs)


@dataclass(frozen=True)
class Pro(Ranked):
    """sum_{k < n} log(1 + sum_{i after k} exp(p_i T_ki - p_k T_k)) + sft (n - 1)^2 * -log pi(best).

    PRO, arXiv 2306.17492 (code read): p = mean log-prob of the tokens, T_ki = r_k - r_i from the scores and
    T_k their maximum. The last term is summed over tokens. There is no beta: the scores set the scale.
    """

    sft: float = 0.05

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    def losses(self, reads: Reads, pairs: Pairs) -> Tensor:
        first, second = Mean(against=None).sides(reads, pairs.table)
        one, other = pairs.table.part(self.part)
        gap = (one - other).to(first.dtype)
        losses = pairs.after(second * gap - first * pairs.widest(gap)[pairs.place])
        best_and_last = pairs.apart.new_zeros(reads.size).scatter_reduce(
            0, pairs.table.owner, pairs.apart, "amax"
        )
        ends = pairs.apart == best_and_last[pairs.table.owner]  # one pair per comparison
        likelihood = reads.tokens["policy"].sum(-1)[pairs.table.winner]
        return losses - self.sft * likelihood * (ends * pairs.apart**2)
