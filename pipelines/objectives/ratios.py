"""GRPO with other uses of the ratio u = pi / pi_behaviour, and a regression in its place.

Formulas from TRL's code (read); arXiv ids as TRL gives them. A is the advantage of `PolicyGradient`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, Reads, log_ratio
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.objectives.terms import CellTerm, Reduction, known

LOWEST, HIGHEST = -18.420680743952367, 20.0  # log 1e-8 and the largest exponent: where VESPO cuts log u


@dataclass(frozen=True)
class Cispo(PolicyGradient):
    """-sg(min(u, ceiling)) A log pi: no token is without a gradient. CISPO, arXiv 2506.13585."""

    ceiling: float | None = 5.0
    reduction: Reduction = "batch_tokens"

    def surrogate(self, logs: Tensor, advantage: Tensor, policy: Tensor, lengths: Tensor) -> Tensor:
        ratio = self.pooled(logs, lengths).exp().clamp(max=self.ceiling or torch.inf)
        return -ratio.detach() * advantage * policy


@dataclass(frozen=True)
class Sapo(PolicyGradient):
    """-(4 / tau) sigmoid(tau (u - 1)) A: a smooth gate in place of the clip. SAPO, arXiv 2511.20347.

    tau is `sharp` for A > 0 and `sharp_negative` otherwise; at u = 1 the gradient is that of -u A.
    """

    sharp: float = 1.0
    sharp_negative: float = 1.05

    def surrogate(self, logs: Tensor, advantage: Tensor, policy: Tensor, lengths: Tensor) -> Tensor:
        tau = torch.where(advantage > 0, self.sharp, self.sharp_negative)
        return -torch.sigmoid(tau * (self.pooled(logs, lengths).exp() - 1)) * 4 / tau * advantage


@dataclass(frozen=True)
class Vespo(PolicyGradient):
    """-sg(phi(u)) A log pi, phi(u) = exp(l) u^k exp(-l u), u the product over the answer.

    VESPO, arXiv 2602.10693: (k, l) is `gamma` for A >= 0 and `gamma_negative` otherwise; phi(1) = 1.
    """

    reduction: Reduction = "batch_tokens"
    gamma: tuple[float, float] = (2.0, 3.0)
    gamma_negative: tuple[float, float] = (3.0, 2.0)

    def surrogate(self, logs: Tensor, advantage: Tensor, policy: Tensor, lengths: Tensor) -> Tensor:
        whole = logs.detach().clamp(-HIGHEST, HIGHEST).sum(-1, keepdim=True).clamp(LOWEST, HIGHEST)
        pairs = zip(self.gamma, self.gamma_negative, strict=True)
        k, scale = (torch.where(advantage >= 0, one, other) for one, other in pairs)
        return -torch.exp(scale + k * whole - scale * whole.exp()) * advantage * policy


@dataclass(frozen=True)
class Gmpo(PolicyGradient):
    """-A times the geometric mean of the tokens' clipped u. GMPO, arXiv 2507.20673.

    log u is cut to [-clip, clip_high], per token and only where that makes the term smaller.
    """

    clip: float | None = 0.4

    def surrogate(self, logs: Tensor, advantage: Tensor, policy: Tensor, lengths: Tensor) -> Tensor:
        clip = self.clip or 0.0
        cut = logs.clamp(-clip, clip if self.clip_high is None else self.clip_high)
        kept = torch.where(advantage > 0, torch.minimum(logs, cut), torch.maximum(logs, cut))
        return -(kept.sum(-1, keepdim=True) / lengths.clamp(min=1)[:, None]).exp() * advantage


@dataclass(frozen=True)
class AdvantageRegression(CellTerm):
    """(beta rho - (r - V))^2 of each sample, V a score part: A*-PO, arXiv 2505.20686.

    V estimates the prompt's optimal value, beta_1 log mean exp(r / beta_1) over samples of the reference. A
    cell that misses a score has weight 0.
    """

    on: str = "y"
    beta: float = 1e-3
    part: str = "value"
    optimal: str = "optimal"

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        return torch.where(known(cells.part(self.part), cells.part(self.optimal)), cells.weight, 0.0)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        target = (cells.part(self.part) - cells.part(self.optimal)).nan_to_num()
        return (self.beta * log_ratio(reads)[cells.cell] - target) ** 2
