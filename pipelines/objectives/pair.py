"""The pairwise preference term."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from pipelines.objectives.base import Loss, Reads, Term, absent, log_ratio, per_comparison


@dataclass(frozen=True)
class Pair(Term):
    """-log sigmoid(beta (rho_w - rho_l) - margin) per edge, with rho = log pi - log pi_ref in nats.

    DPO, arXiv 2305.18290, equation 7 (from memory). On an edge whose sides differ in the
    media alone it is the conditional term of mDPO (arXiv 2406.11839) and the image reward of MFPO
    (arXiv 2410.15334). The edge's margin, in nats, is subtracted inside the sigmoid, and its weight
    multiplies the term; the comparison's weight is the sum over its edges.

    Raises ValueError when `on` names one side of an edge, or beta is not positive.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        if "." in self.on:
            raise ValueError(f"Pair(on={self.on!r}): expected the name of an edge, such as {self.edge!r}")
        if not self.beta > 0:
            raise ValueError(f"Pair(on={self.on!r}): beta must be positive, got {self.beta}")

    def __call__(self, reads: Reads) -> Loss:
        table = reads.edges.get(self.edge)
        if table is None:
            return absent(reads)
        rho = log_ratio(reads)
        logits = self.beta * (rho[table.winner] - rho[table.loser]) - table.margin
        values = table.weight * -F.logsigmoid(logits)
        return Loss(
            value=per_comparison(values, table.owner, reads.size),
            weight=per_comparison(table.weight, table.owner, reads.size),
        )
