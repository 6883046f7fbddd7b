"""Rationales: a third sequence that says why the winner is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import CellTable, Reads
from pipelines.objectives.terms import CellTerm


@dataclass(frozen=True)
class LogProb(CellTerm):
    """-log sigmoid(gamma log pi(r)) of a rationale r under the question and both answers.

    Rationale DPO, arXiv 2407.14477 (code read). For gamma log pi far below 0 this is -gamma log pi, whose
    plain form is `gamma * Nll(on, "sum")` (the released RORPO).
    """

    gamma: float = 0.1

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        return -F.logsigmoid(self.gamma * reads.tokens["policy"].sum(-1)[cells.cell])
