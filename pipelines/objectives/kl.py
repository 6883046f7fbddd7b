"""Terms that hold the policy near a reference, or push it away from one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, EdgeTable, Feature, Reads, log_ratio
from pipelines.objectives.terms import CellTerm, EdgeTerm, Reduction, grouped_mean, reduced, reduced_weights


@dataclass(frozen=True)
class TokenKl(CellTerm):
    """KL(pi_ref || pi) ("forward") or KL(pi || pi_ref) ("reverse") over the vocabulary at an answer's
    positions.

    RRPO (code and third-party note read): forward, summed, on the winner, weight 0.01.
    """

    direction: Literal["forward", "reverse"] = "forward"
    reduction: Reduction = "sum"

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset[Feature]({"kl_forward"} if self.direction == "forward" else {"kl_reverse"})

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        return reduced_weights(cells.weight, reads.lengths[cells.cell], self.reduction)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        kl = reads.features[f"kl_{self.direction}"][cells.cell]
        return reduced(kl, reads.lengths[cells.cell], self.reduction)


@dataclass(frozen=True)
class LoserKl(EdgeTerm):
    """d_l - sg d_w, d = sum_t KL(pi_ref || pi), nats: a term of its own, outside any sigmoid.

    With a positive weight it lowers d_l: a penalty. CHiP's paper (arXiv 2501.16629), as transcribed in a
    third-party note, has gamma (sg d_w - d_l), which is the weight -gamma and rewards a growing d_l; its
    released code has `margins.KLGap`, a penalty. See there for the derivation.
    """

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"kl_forward"})

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        kl = reads.features["kl_forward"].sum(-1)
        return kl[table.loser] - kl[table.winner].detach()


@dataclass(frozen=True)
class ScoreKl(CellTerm):
    """sg(rho - b) log pi for each fresh sample: its expected gradient is that of KL(pi || pi_ref).

    HyPO, arXiv 2406.01462 (abstract and a third-party note; formula from memory): DPO on offline pairs plus
    this on unlabelled samples. b is the mean rho of the comparison's other samples ("rloo"), or 0. The
    samples have to be the policy's own, so they may not be older than the newest weights.
    """

    baseline: Literal["rloo", "none"] = "rloo"

    @property
    def max_lag(self) -> int:
        return 0

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        rho = log_ratio(reads)[cells.cell].detach()
        if self.baseline == "rloo":
            mean, number = grouped_mean(rho, cells.weight > 0, cells.owner, reads.size)
            others = (mean * number - rho) / (number - 1).clamp(min=1)
            rho = rho - torch.where(number > 1, others, 0.0)
        return rho * reads.tokens["policy"].sum(-1)[cells.cell]


@dataclass(frozen=True)
class Bonus(CellTerm):
    """+ alpha log pi, or + alpha rho with against="reference": minimising lowers it where alpha > 0.

    XPO, arXiv 2405.21046 (TRL's code read): alpha = 1e-5 on the reference's answer (optimism). VPO, arXiv
    2405.19320 (third-party note, derivation inferred): alpha = sign * alpha' * beta on calibration answers,
    sign +1 online (with the reference's answers: XPO) and -1 offline (with the chosen ones: RPO).
    """

    alpha: float = 1.0
    against: str | None = None

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"} | ({self.against} if self.against else set()))

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        logps = log_ratio(reads) if self.against == "reference" else reads.tokens["policy"].sum(-1)
        return self.alpha * logps[cells.cell]
