"""Pairwise losses that look at each side's own log-ratio, not at their difference alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Feature, Reads, Statistic
from pipelines.objectives.plugs import Weighting
from pipelines.objectives.scoring import Scoring, Sum
from pipelines.objectives.terms import EdgeTerm, known


class Sided:
    """Base of forms: (beta s_w, beta s_l) -> loss, all [E]."""

    def known(self, table: EdgeTable) -> Tensor:
        """[E] bool, False where a score that the form reads is missing: the edge then has weight 0."""
        return torch.ones_like(table.owner, dtype=torch.bool)

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its loss")


@dataclass(frozen=True)
class Nca(Sided):
    """-log sigmoid(a) - 1/2 log sigmoid(-a) - 1/2 log sigmoid(-b): NCA, arXiv 2402.05369 (TRL's code
    read)."""

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        return -F.logsigmoid(winner) - 0.5 * F.logsigmoid(-winner) - 0.5 * F.logsigmoid(-loser)


@dataclass(frozen=True)
class BcoPair(Sided):
    """-log sigmoid(a) - log sigmoid(-b): BCO on pairs without its running shift (TRL's code read); with it,
    see `unpaired.Bco`."""

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        return -F.logsigmoid(winner) - F.logsigmoid(-loser)


@dataclass(frozen=True)
class ApoZero(Sided):
    """1 - sigmoid(a) + sigmoid(b): anchored preference optimisation, arXiv 2408.06266, equation 7 (TRL's code
    read). For winners that are better than the model."""

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        return torch.sigmoid(-winner) + torch.sigmoid(loser)


@dataclass(frozen=True)
class ApoDown(Sided):
    """sigmoid(a) + 1 - sigmoid(a - b): arXiv 2408.06266, equation 8 (TRL's code read). For winners that are
    worse than the model."""

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        return torch.sigmoid(winner) + torch.sigmoid(loser - winner)


@dataclass(frozen=True)
class SppoHard(Sided):
    """(s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2: TRL's `sppo_hard` (code read)."""

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        return ((winner - 0.5) / beta) ** 2 + ((loser + 0.5) / beta) ** 2


@dataclass(frozen=True)
class Sppo(Sided):
    """1/2 [(s_w - (P_w - 1/2) / beta)^2 + (s_l - (P_l - 1/2) / beta)^2] with win probabilities P.

    SPPO, arXiv 2405.00675 (its authors' code read). `part`: the score part that holds each answer's P among
    all samples; an edge that lacks it has weight 0. None: P_w is the edge's probability and P_l = 1 - P_w.
    With P = (1, 0) it is half of `SppoHard`.
    """

    part: str | None = None

    def known(self, table: EdgeTable) -> Tensor:
        return super().known(table) if self.part is None else known(*table.part(self.part))

    def __call__(self, winner: Tensor, loser: Tensor, beta: float, table: EdgeTable) -> Tensor:
        p = table.probability
        win, lose = (p, 1 - p) if self.part is None else table.part(self.part)
        first = (winner - (win.nan_to_num() - 0.5)) / beta
        second = (loser - (lose.nan_to_num() - 0.5)) / beta
        return 0.5 * (first**2 + second**2)


@dataclass(frozen=True)
class Sides(EdgeTerm):
    """form(beta s_w, beta s_l) per edge. The edges' own margins are not read: there is no gap to shift.

    Raises ValueError when `on` names one side of an edge, or beta is not positive.
    """

    beta: float = 0.1
    form: Sided = field(default_factory=Nca)
    scoring: Scoring = field(default_factory=Sum)
    weighting: Weighting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"Sides(on={self.on!r}): beta must be positive, got {self.beta}")

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views | (self.weighting.views if self.weighting else frozenset[str]())

    @property
    def needs(self) -> frozenset[Feature]:
        return self.weighting.needs if self.weighting else frozenset()

    @property
    def spans(self) -> frozenset[str]:
        return self.scoring.spans

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return self.weighting.statistics if self.weighting else ()

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        weights = torch.where(self.form.known(table), table.weight, 0.0)
        return torch.where(self.weighting.known(table), weights, 0.0) if self.weighting else weights

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        winner, loser = self.scoring.sides(reads, table)
        losses = self.form(self.beta * winner, self.beta * loser, self.beta, table)
        if self.weighting is None:
            return losses
        with torch.no_grad():
            factor = self.weighting(reads, table)
        return losses * factor

    def observe(self, reads: Reads) -> Mapping[str, tuple[Tensor, Tensor]]:
        table = reads.edges.get(self.on)
        return self.weighting.observe(reads, table) if self.weighting and table is not None else {}
