"""Pairwise preference terms: scoring, margin, link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import (
    EdgeTable,
    Feature,
    Reads,
    Statistic,
    Term,
    log_ratio,
    nothing,
    per_comparison,
)
from pipelines.objectives.links import Link, LogSigmoid
from pipelines.objectives.plugs import Margin, Plug, Weighting
from pipelines.objectives.scoring import Scoring, Sum
from pipelines.objectives.terms import EdgeTerm


@dataclass(frozen=True)
class Linked(Term):
    """Base: a link on a scaled margin, less margins, times factors."""

    beta: float = 0.1
    link: Link = field(default_factory=LogSigmoid)
    scoring: Scoring = field(default_factory=Sum)
    margin: Margin | None = None
    weighting: Weighting | None = None

    def _require(self, on: object) -> None:
        if not self.beta > 0:
            raise ValueError(f"{type(self).__name__}(on={on!r}): beta must be positive, got {self.beta}")

    @property
    def plugs(self) -> tuple[Plug, ...]:
        return tuple(plug for plug in (self.margin, self.weighting) if plug is not None)

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views.union(*(plug.views for plug in self.plugs))

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset[Feature]().union(*(plug.needs for plug in self.plugs))

    @property
    def spans(self) -> frozenset[str]:
        return self.scoring.spans

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return tuple(item for plug in self.plugs for item in plug.statistics)

    def counted(self, table: EdgeTable, weights: Tensor) -> Tensor:
        """The weights, 0 where a plug lacks a score."""
        for plug in self.plugs:
            weights = torch.where(plug.known(table), weights, 0.0)
        return weights

    def linked(self, reads: Reads, table: EdgeTable, gap: Tensor, margin: Tensor) -> Tensor:
        """[E] losses of the gaps beta (s_w - s_l), `margin` being the edges' own."""
        h = gap - margin
        if self.margin is not None:
            h = h - self.margin(reads, table, gap)
        losses = self.link(h, self.beta)
        if self.weighting is not None:
            with torch.no_grad():
                factor = self.weighting(reads, table)
            losses = losses * factor
        return losses

    def gap(self, reads: Reads, table: EdgeTable) -> Tensor:
        """beta (s_w - s_l) of each edge."""
        winner, loser = self.scoring.sides(reads, table)
        return self.beta * (winner - loser)

    def noted(self, reads: Reads, table: EdgeTable | None) -> Mapping[str, tuple[Tensor, Tensor]]:
        if table is None:
            return {}
        return {key: item for plug in self.plugs for key, item in plug.observe(reads, table).items()}


@dataclass(frozen=True)
class Pair(Linked, EdgeTerm):
    """link(beta (s_w - s_l) - margin) per edge; by default -log sigmoid of beta (rho_w - rho_l).

    DPO, arXiv 2305.18290, equation 7 (from memory), with rho = log pi - log pi_ref in nats. On an edge whose
    sides differ in the media alone it is the conditional term of mDPO (arXiv 2406.11839) and the image reward
    of MFPO (arXiv 2410.15334). The edge's own margin, in nats, is subtracted as well, and its weight
    multiplies the term; the comparison's weight is the sum over its edges. Labels are hard: an edge's
    `probability` is read by `sides.Sppo` and `policy_gradient.Nash` alone.

    Raises ValueError when `on` names one side of an edge, or beta is not positive.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.on)

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        return self.counted(table, table.weight)

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        return self.linked(reads, table, self.gap(reads, table), table.margin)

    def observe(self, reads: Reads) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self.noted(reads, reads.edges.get(self.on))


@dataclass(frozen=True)
class Form(Term):
    """Base: reads a linear form of edges."""

    on: Mapping[str, float]  # edge name -> coefficient

    @property
    def edges(self) -> frozenset[str]:
        return frozenset(self.on)


@dataclass(frozen=True)
class Linear(Linked, Form):
    """link(sum_e c_e beta (s_w - s_l)_e - margins): one link on a linear form of several edges.

    Edges are joined by comparison and `key`; where one of the names is missing there is nothing to learn, and
    the weight is 0. The joined edge weighs as its lightest one; the edges' own margins are summed. `margin`
    and `weighting` read the edge that is named first. Per-edge betas are coefficients.

    POVID's one sigmoid with two betas (arXiv 2402.11411, code and third-party note read), CHiP's released
    form (arXiv 2501.16629, code read), MAPL's pairs of gaps {"wide": 1, "base": -1} (inferred).

    Raises ValueError for fewer than one edge, beta <= 0, or (when used) edges of a name with the same key.
    """

    def __post_init__(self) -> None:
        if not self.on:
            raise ValueError("Linear(on={}): expected edges and their coefficients")
        self._require(dict(self.on))

    def weight(self, reads: Reads) -> Tensor:
        joined = self._joined(reads)
        if joined is None:
            return nothing(reads)
        first = next(iter(joined.values()))
        return per_comparison(self._weights(joined), first.owner, reads.size)

    def value(self, reads: Reads) -> Tensor:
        joined = self._joined(reads)
        if joined is None:
            return nothing(reads)
        first = next(iter(joined.values()))
        gaps = [self.on[name] * self.gap(reads, table) for name, table in joined.items()]
        margins = torch.stack([table.margin for table in joined.values()]).sum(0)
        losses = self.linked(reads, first, torch.stack(gaps).sum(0), margins)
        return per_comparison(self._weights(joined) * losses, first.owner, reads.size)

    def observe(self, reads: Reads) -> Mapping[str, tuple[Tensor, Tensor]]:
        joined = self._joined(reads)
        return {} if joined is None else self.noted(reads, next(iter(joined.values())))

    def _weights(self, joined: Mapping[str, EdgeTable]) -> Tensor:
        lightest = torch.stack([table.weight for table in joined.values()]).amin(0)
        return self.counted(next(iter(joined.values())), lightest)

    def _joined(self, reads: Reads) -> dict[str, EdgeTable] | None:
        """The tables with row i of each belonging together; None when there are none."""
        if any(name not in reads.edges for name in self.on):
            return None
        tables = [reads.edges[name] for name in self.on]
        first = tables[0]
        rows: list[Tensor] = []
        for name, table in zip(self.on, tables, strict=True):
            same = (first.owner[:, None] == table.owner) & (first.key[:, None] == table.key)
            if (same.sum(-1) > 1).any():
                raise ValueError(f"Linear joins edges by key, but several edges {name!r} share one; set keys")
            rows.append(torch.where(same.any(-1), same.long().argmax(-1), -1))
        complete = torch.stack(rows).amin(0) >= 0
        return {
            name: _rows(table, row[complete]) for name, table, row in zip(self.on, tables, rows, strict=True)
        }


@dataclass(frozen=True)
class TwoBetas(EdgeTerm):
    """-log sigmoid(beta rho_w - beta_loser rho_l).

    Flex-DPO of "3D-Properties", arXiv 2406.07327 (third-party note): beta_loser < beta keeps the winner from
    falling with the loser; 0 leaves no gradient on the loser. Raises ValueError unless beta > 0 and
    beta_loser >= 0.
    """

    beta: float = 0.1
    beta_loser: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta > 0 and self.beta_loser >= 0):
            raise ValueError(
                f"TwoBetas(on={self.on!r}): expected beta > 0 and beta_loser >= 0, got {self.beta} and "
                f"{self.beta_loser}"
            )

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        rho = log_ratio(reads)
        return -F.logsigmoid(
            self.beta * rho[table.winner] - self.beta_loser * rho[table.loser] - table.margin
        )


def _rows(table: EdgeTable, rows: Tensor) -> EdgeTable:
    return EdgeTable(
        winner=table.winner[rows],
        loser=table.loser[rows],
        owner=table.owner[rows],
        key=table.key[rows],
        probability=table.probability[rows],
        margin=table.margin[rows],
        weight=table.weight[rows],
        scores={name: (one[rows], other[rows]) for name, (one, other) in table.scores.items()},
        spans={name: (one[rows], other[rows]) for name, (one, other) in table.spans.items()},
    )
