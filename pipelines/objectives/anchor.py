"""The anchor: keeps the absolute log-ratio of one side of an edge from falling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Loss, Reads, Term, absent, log_ratio, per_comparison


@dataclass(frozen=True)
class Anchor(Term):
    """-log sigmoid(beta rho - delta) of one side of an edge, with rho = log pi - log pi_ref in nats.

    mDPO, arXiv 2406.11839 (code and third-party notes read), its anchored preference term, with delta = 0.
    MFPO's margin term (arXiv 2410.15334, third-party note) is the same with delta = eta; its best eta is 0.
    A pair can be satisfied by lowering both sides; this term forbids that.

    A cell that several edges of the name share counts once, with the largest of their weights.
    Raises ValueError when `on` does not name a side, or beta is not positive.
    """

    on: str = "text.winner"
    delta: float = 0.0  # nats, on the scale of beta * rho
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.on.partition(".")[2] not in ("winner", "loser"):
            raise ValueError(f"Anchor(on={self.on!r}): expected '{self.edge}.winner' or '{self.edge}.loser'")
        if not self.beta > 0:
            raise ValueError(f"Anchor(on={self.on!r}): beta must be positive, got {self.beta}")

    def __call__(self, reads: Reads) -> Loss:
        table = reads.edges.get(self.edge)
        if table is None:
            return absent(reads)
        cells, owner, weight = self._distinct(table)
        values = weight * -F.logsigmoid(self.beta * log_ratio(reads)[cells] - self.delta)
        return Loss(
            value=per_comparison(values, owner, reads.size), weight=per_comparison(weight, owner, reads.size)
        )

    def _distinct(self, table: EdgeTable) -> tuple[Tensor, Tensor, Tensor]:
        """Cells [C], their comparisons [C] and weights [C]; a cell belongs to exactly one comparison."""
        side = table.winner if self.on.endswith(".winner") else table.loser
        cells, inverse = cast(
            tuple[Tensor, Tensor],
            torch.unique(side, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
        )
        owner = table.owner.new_zeros(len(cells)).scatter(0, inverse, table.owner)
        weight = table.weight.new_zeros(len(cells)).scatter_reduce(0, inverse, table.weight, "amax")
        return cells, owner, weight
