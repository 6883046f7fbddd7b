"""Supervised fine-tuning read as implicit reward learning, under other divergences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, Reads, log_ratio
from pipelines.objectives.terms import CellTerm


@dataclass(frozen=True)
class FSft(CellTerm):
    """psi(beta rho) of demonstrations: "kl" -h (supervised fine-tuning), "pearson" h^2 / 4 - h, "hellinger"
    -h / (1 + h).

    Implicit-reward view of SFT, arXiv 2507.00018 (abstract read; the forms are inferred from the conjugates
    of the divergences). All start alike, with value 0 and slope -1 at h = 0; pearson then stops at h = 2, and
    hellinger saturates at -1. hellinger is continued by its tangent below h = -1/2. A KL penalty is
    `TokenKl`.
    """

    divergence: Literal["kl", "pearson", "hellinger"] = "kl"
    beta: float = 0.1

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        h = self.beta * log_ratio(reads)[cells.cell]
        if self.divergence == "kl":
            return -h
        if self.divergence == "pearson":
            return h**2 / 4 - h
        inside = h.clamp(min=-0.5)
        return torch.where(h >= -0.5, -inside / (1 + inside), 1 - 4 * (h + 0.5))
