"""The two shapes that most terms have: one loss per edge of a name, or one loss per cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.objectives.base import (
    CellTable,
    EdgeTable,
    Reads,
    Term,
    names_of,
    nothing,
    per_comparison,
    require_side,
    side_cells,
)

# over a cell's tokens, then over cells: the mean of means, the mean of sums, the mean over all tokens
Reduction = Literal["sequence_mean", "sum", "batch_tokens"]


@dataclass(frozen=True)
class EdgeTerm(Term):
    """Base: `losses` gives one loss per edge called `on`. Raises ValueError when `on` names a side."""

    on: str = "text"

    def __post_init__(self) -> None:
        if "." in self.on:
            edge = self.on.partition(".")[0]
            raise ValueError(
                f"{type(self).__name__}(on={self.on!r}): expected the name of an edge, such as {edge!r}"
            )

    @property
    def edges(self) -> frozenset[str]:
        return frozenset({self.on})

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        """[E]"""
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        """[E]"""
        return table.weight

    def weight(self, reads: Reads) -> Tensor:
        table = reads.edges.get(self.on)
        if table is None:
            return nothing(reads)
        return per_comparison(self.weights(reads, table), table.owner, reads.size)

    def value(self, reads: Reads) -> Tensor:
        table = reads.edges.get(self.on)
        if table is None:
            return nothing(reads)
        values = self.weights(reads, table) * self.losses(reads, table)
        return per_comparison(values, table.owner, reads.size)


@dataclass(frozen=True)
class CellTerm(Term):
    """Base: `losses` gives one loss per cell of a role, or of one side of an edge ("text.winner").

    A cell that several edges of the name share counts once, with the largest of their weights. Raises
    ValueError when `on` does not name cells.
    """

    on: str = "text.winner"

    def __post_init__(self) -> None:
        require_side(self, self.on)

    @property
    def edges(self) -> frozenset[str]:
        return names_of(self.on)[0]

    @property
    def roles(self) -> frozenset[str]:
        return names_of(self.on)[1]

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        """[C]"""
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        """[C]"""
        return cells.weight

    def weight(self, reads: Reads) -> Tensor:
        cells = side_cells(reads, self.on)
        if cells is None:
            return nothing(reads)
        return per_comparison(self.weights(reads, cells), cells.owner, reads.size)

    def value(self, reads: Reads) -> Tensor:
        cells = side_cells(reads, self.on)
        if cells is None:
            return nothing(reads)
        values = self.weights(reads, cells) * self.losses(reads, cells)
        return per_comparison(values, cells.owner, reads.size)


def reduced(tokens: Tensor, lengths: Tensor, reduction: Reduction) -> Tensor:
    """[C] from [C, L]: the sum over tokens or, to be weighed by `reduced_weights`, their mean."""
    total = tokens.sum(-1)
    return total if reduction == "sum" else total / lengths.clamp(min=1)


def reduced_weights(weights: Tensor, lengths: Tensor, reduction: Reduction) -> Tensor:
    """[C] the cells' weights, times their tokens where the mean is over all tokens of the batch."""
    return weights * lengths if reduction == "batch_tokens" else weights


def known(*scores: Tensor) -> Tensor:
    """Where all of these scores are there."""
    return ~torch.stack(scores).isnan().any(0)


def grouped_mean(values: Tensor, counted: Tensor, owner: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(mean over the counted values with the same owner, their number), both for each value."""
    counts = counted.to(values.dtype)
    number = per_comparison(counts, owner, size)
    total = per_comparison(torch.where(counted, values, 0.0), owner, size)
    return (total / number.clamp(min=1))[owner], number[owner]
