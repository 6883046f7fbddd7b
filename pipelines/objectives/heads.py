"""Auxiliary losses of small heads that train with the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import CellTable, Feature, Head, Reads, Term, nothing, per_comparison
from pipelines.objectives.terms import CellTerm, known


def pooled(reads: Reads) -> Tensor:
    """[N, width] mean of the policy's last hidden states over an answer's scored tokens."""
    scored = torch.where(reads.mask[..., None], reads.features["hidden"], 0.0)
    return scored.sum(1) / reads.lengths.clamp(min=1)[:, None]


@dataclass(frozen=True)
class Degree(Term):
    """Cross-entropy of a head that tells how much was deleted from an answer: role k of `on` is class k.

    Self-supervised preference optimisation, arXiv 2409.17791 (abstract read; mechanism from memory, pooling
    inferred).
    """

    on: tuple[str, ...]  # roles, from the untouched answer to the most damaged one
    name: str = "degree"

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.on)

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"hidden"})

    @property
    def heads(self) -> tuple[Head, ...]:
        return (Head(name=self.name, outputs=len(self.on)),)

    def weight(self, reads: Reads) -> Tensor:
        weights = [per_comparison(cells.weight, cells.owner, reads.size) for _, cells in self._cells(reads)]
        return torch.stack([nothing(reads), *weights]).sum(0)

    def value(self, reads: Reads) -> Tensor:
        logps = F.log_softmax(reads.heads[self.name](pooled(reads)), dim=-1)
        values = [
            per_comparison(cells.weight * -logps[cells.cell, degree], cells.owner, reads.size)
            for degree, cells in self._cells(reads)
        ]
        return torch.stack([nothing(reads), *values]).sum(0)

    def _cells(self, reads: Reads) -> list[tuple[int, CellTable]]:
        return [(k, reads.roles[role]) for k, role in enumerate(self.on) if role in reads.roles]


@dataclass(frozen=True)
class Aux(CellTerm):
    """A head's error on targets that travel as score parts: boxes ("mse"), masks ("bce"), tasks
    ("cross_entropy", one part with the class number, `classes` of them).

    Task preference optimisation, arXiv 2412.19326 (third-party note): auxiliary heads beside the likelihood;
    its detection and segmentation decoders are out of scope, pooling is inferred. A cell that lacks a part
    has weight 0.

    Raises ValueError when the class number's part is not one, or `classes` is missing.
    """

    name: str = "aux"
    parts: tuple[str, ...] = ()
    loss: Literal["mse", "bce", "cross_entropy"] = "mse"
    classes: int = 0
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "cross_entropy" and (len(self.parts) != 1 or self.classes < 2):
            raise ValueError(
                f"Aux({self.name!r}): cross_entropy reads one part, the class number, of at least 2 classes; "
                f"got the parts {self.parts} and {self.classes} classes"
            )
        if not self.parts:
            raise ValueError(f"Aux({self.name!r}): expected the names of score parts as targets")

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"hidden"})

    @property
    def heads(self) -> tuple[Head, ...]:
        return (Head(name=self.name, outputs=self.classes or len(self.parts), hidden=self.hidden),)

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        return torch.where(known(*(cells.part(name) for name in self.parts)), cells.weight, 0.0)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        outputs = reads.heads[self.name](pooled(reads)[cells.cell])
        targets = torch.stack([cells.part(name) for name in self.parts], -1).nan_to_num().to(outputs.dtype)
        if self.loss == "mse":
            return (outputs - targets).square().mean(-1)
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)
        return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
