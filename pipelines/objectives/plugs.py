"""What a pairwise term may carry beside its scoring: margins inside the link and factors outside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Feature, Reads, Statistic


class Plug:
    """What margins and weightings declare."""

    @property
    def views(self) -> frozenset[str]:
        return frozenset()

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset()

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return ()

    def known(self, table: EdgeTable) -> Tensor:
        """[E] bool, False where a score that it reads is missing: the edge then has weight 0."""
        return torch.ones_like(table.owner, dtype=torch.bool)

    def observe(self, reads: Reads, table: EdgeTable) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(sum, count) of its statistics over the edges that count."""
        return {}


class Margin(Plug):
    """Subtracted inside the link, [E], on the scale of h = beta (s_w - s_l). Without gradient unless it says
    so."""

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        """`gap`: h before margins, [E]."""
        raise TypeError(f"{type(self).__name__} does not define its margin")


class Weighting(Plug):
    """A factor of each edge's loss, [E], without gradient. It may depend on the policy: the denominator does
    not contain it."""

    def __call__(self, reads: Reads, table: EdgeTable) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its factor")
