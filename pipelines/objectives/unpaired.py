"""Losses on answers that are good or bad by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import (
    COUNT,
    CellTable,
    Reads,
    Statistic,
    Term,
    log_ratio,
    names_of,
    nothing,
    per_comparison,
    require_side,
    side_cells,
)


@dataclass(frozen=True)
class Unpaired(Term):
    """Base: one loss per good and per bad answer; each names a role, or one side of an edge."""

    good: str = "good"
    bad: str = "bad"

    def __post_init__(self) -> None:
        require_side(self, self.good)
        require_side(self, self.bad)

    @property
    def label(self) -> str:
        return f"{type(self).__name__.lower()}_{self.good}+{self.bad}"

    @property
    def edges(self) -> frozenset[str]:
        return names_of(self.good)[0] | names_of(self.bad)[0]

    @property
    def roles(self) -> frozenset[str]:
        return names_of(self.good)[1] | names_of(self.bad)[1]

    def cells(self, reads: Reads) -> list[tuple[bool, CellTable]]:
        """(whether they are good, cells) of each side that is there."""
        sides = [(True, side_cells(reads, self.good)), (False, side_cells(reads, self.bad))]
        return [(good, cells) for good, cells in sides if cells is not None]

    def weight(self, reads: Reads) -> Tensor:
        weights = [per_comparison(cells.weight, cells.owner, reads.size) for _, cells in self.cells(reads)]
        return torch.stack([nothing(reads), *weights]).sum(0)

    def value(self, reads: Reads) -> Tensor:
        rho, shift = log_ratio(reads), self.shift(reads)
        values = [
            per_comparison(
                cells.weight * self.factor(cells, good) * self.loss(rho[cells.cell], shift, good),
                cells.owner,
                reads.size,
            )
            for good, cells in self.cells(reads)
        ]
        return torch.stack([nothing(reads), *values]).sum(0)

    def factor(self, cells: CellTable, good: bool) -> Tensor:
        """[C] that multiplies the losses and is no part of the denominator."""
        return torch.ones_like(cells.weight)

    def shift(self, reads: Reads) -> Tensor:
        """[] what answers are compared with, without gradient."""
        raise TypeError(f"{type(self).__name__} does not define its shift")

    def loss(self, rho: Tensor, shift: Tensor, good: bool) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its loss")


@dataclass(frozen=True)
class Kto(Unpaired):
    """desirable (1 - sigmoid(beta (rho - z))) for good answers, undesirable (1 - sigmoid(beta (z - rho)))
    for bad.

    KTO, arXiv 2402.01306 (TRL's code read). z = max(0, mean rho) over the `kl` cells of the whole global
    batch (answers under other prompts), without gradient: coupled. TRL takes them by rotating each device's
    batch. `kl` = None fixes z = 0 (`apo_zero_unpaired`), and each comparison stands alone.
    """

    kl: str | None = "kl"
    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    @property
    def roles(self) -> frozenset[str]:
        return super().roles | frozenset(() if self.kl is None else (self.kl,))

    @property
    def coupled(self) -> bool:
        return self.kl is not None

    @torch.no_grad()
    def shift(self, reads: Reads) -> Tensor:
        rho = log_ratio(reads)
        cells = None if self.kl is None else reads.roles.get(self.kl)
        if cells is None or not (cells.weight > 0).any():
            return rho.new_zeros(())
        return rho[cells.cell[cells.weight > 0]].mean().clamp(min=0)

    def loss(self, rho: Tensor, shift: Tensor, good: bool) -> Tensor:
        if good:
            return self.desirable * torch.sigmoid(self.beta * (shift - rho))
        return self.undesirable * torch.sigmoid(self.beta * (rho - shift))


@dataclass(frozen=True)
class Bco(Unpaired):
    """-log sigmoid(beta rho - delta) for good answers, -log sigmoid(delta - beta rho) for bad ones.

    BCO, arXiv 2404.04656 (TRL's and InternVL's code read); delta = mean of all rewards beta rho so far. The
    mean is over answers: InternVL's MPO sums the two of a pair, which is twice this. `current`: delta counts
    the present global batch as TRL does, which couples it; otherwise it is that of earlier steps, 0 at first.
    `density`: score part with the probability p that a bad answer's prompt is one of the good answers'; the
    loss of a bad answer is then multiplied by p / (1 - p), clipped to [0.5, 10], and one without it counts 0.
    """

    beta: float = 0.1
    current: bool = False
    density: str | None = None
    name: str = "bco"

    @property
    def coupled(self) -> bool:
        return self.current

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Statistic(name=self.name, kind="mean"),)

    @torch.no_grad()
    def shift(self, reads: Reads) -> Tensor:
        mean, count = reads.carry.get(self.name, 0.0), reads.carry.get(self.name + COUNT, 0.0)
        total, number = self.observe(reads)[self.name] if self.current else (nothing(reads).sum(), 0.0)
        seen = count + number
        return (mean * count + total) / seen if seen > 0 else total

    def cells(self, reads: Reads) -> list[tuple[bool, CellTable]]:
        if self.density is None:
            return super().cells(reads)
        return [
            (good, cells if good else replace(cells, weight=cells.weight * ~cells.part(self.density).isnan()))
            for good, cells in super().cells(reads)
        ]

    def factor(self, cells: CellTable, good: bool) -> Tensor:
        if good or self.density is None:
            return super().factor(cells, good)
        p = cells.part(self.density).nan_to_num()
        return (p / (1 - p)).clamp(0.5, 10.0)

    def loss(self, rho: Tensor, shift: Tensor, good: bool) -> Tensor:
        gap = self.beta * rho - shift
        return -F.logsigmoid(gap if good else -gap)

    @torch.no_grad()
    def observe(self, reads: Reads) -> Mapping[str, tuple[Tensor, Tensor]]:
        rewards = self.beta * log_ratio(reads)
        counted = [rewards[cells.cell[cells.weight > 0]] for _, cells in self.cells(reads)]
        every = torch.cat([rewards[:0], *counted])
        return {self.name: (every.sum(), rewards.new_tensor(float(len(every))))}
