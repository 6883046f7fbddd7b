"""Links: from a scaled margin h to a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Link(Protocol):
    """h = beta (s_w - s_l) - margin, [E] -> loss [E]. `beta` is given for links that scale with it."""

    def __call__(self, h: Tensor, beta: float) -> Tensor: ...


@dataclass(frozen=True)
class LogSigmoid:
    """-log sigmoid(h); with smoothing e, -(1 - e) log sigmoid(h) - e log sigmoid(-h) (cDPO).

    DPO, arXiv 2305.18290; cDPO as in HALOs and TRL's CPO trainer (code read). TRL's DPO trainer ignores the
    smoothing here. cDPO is DPO + e h: stationary where sigmoid(h) = 1 - e.
    """

    smoothing: float = 0.0

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        if not self.smoothing:
            return -F.logsigmoid(h)
        return -(1 - self.smoothing) * F.logsigmoid(h) - self.smoothing * F.logsigmoid(-h)


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - h): the hinge of SLiC-HF, arXiv 2305.10425 (TRL's code read)."""

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        return F.relu(1 - h)


@dataclass(frozen=True)
class Square:
    """((h - 1/2) / beta)^2, that is (s_w - s_l - 1 / (2 beta))^2: IPO, arXiv 2310.12036 (TRL's code read).

    TRL takes the scores per token (`Mean`); in its online trainer, and in the paper, they are sums.
    """

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        return ((h - 0.5) / beta) ** 2


@dataclass(frozen=True)
class Robust:
    """[-(1 - e) log sigmoid(h) + e log sigmoid(-h)] / (1 - 2 e), e = the share of flipped labels.

    Robust DPO ("rDPO"), arXiv 2403.00409 (TRL's code read). Unbiased under flips: it equals
    -log sigmoid(h) - e / (1 - 2 e) h, which has no lower bound. Raises ValueError unless 0 <= flip < 1/2.
    """

    flip: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.flip < 0.5:
            raise ValueError(f"Robust: expected 0 <= flip < 0.5, got {self.flip}")

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        clean, flipped = F.logsigmoid(h), F.logsigmoid(-h)
        return (self.flip * flipped - (1 - self.flip) * clean) / (1 - 2 * self.flip)


@dataclass(frozen=True)
class Exo:
    """KL of (sigmoid(h), sigmoid(-h)) from (1 - e, e): EXO, arXiv 2402.00856, equation 16 (TRL's code read).

    Raises ValueError unless 0 < epsilon < 1.
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"Exo: expected 0 < epsilon < 1, got {self.epsilon}")

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        winner, loser = F.logsigmoid(h), F.logsigmoid(-h)
        return winner.exp() * (winner - math.log1p(-self.epsilon)) + loser.exp() * (
            loser - math.log(self.epsilon)
        )


@dataclass(frozen=True)
class DiscoPop:
    """-log sigmoid(h) (1 - m) + exp(-h) m with m = sigmoid(h / temperature).

    DiscoPOP, arXiv 2406.08414, equation 5 (TRL's code read). Not monotone: its slope at 0 is positive.
    """

    temperature: float = 0.05

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        ratio = h / self.temperature
        # exp(-h) alone overflows for very negative h, where m vanishes faster
        return -F.logsigmoid(h) * torch.sigmoid(-ratio) + torch.exp(F.logsigmoid(ratio) - h)


@dataclass(frozen=True)
class BoxCox:
    """(1 - sigmoid(h)^q) / q; q -> 0 is -log sigmoid(h), q = 1 bounds the loss: the less a pair is trusted,
    the larger q.

    NaPO (third-party note) with one q for all pairs. Raises ValueError unless 0 <= q <= 1.
    """

    q: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"BoxCox: expected 0 <= q <= 1, got {self.q}")

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        return -F.logsigmoid(h) if self.q == 0 else -torch.expm1(self.q * F.logsigmoid(h)) / self.q


@dataclass(frozen=True)
class DynamicBoxCox:
    """`BoxCox` with q = 1 - sigmoid(alpha h) of each pair, without gradient.

    NaPO (third-party note: q from a margin statistic of the sample; that the statistic is h is inferred). A
    pair that the policy contradicts gets a bounded loss, one that it agrees with the logistic one.
    """

    alpha: float = 1.0

    def __call__(self, h: Tensor, beta: float) -> Tensor:
        q = torch.sigmoid(-self.alpha * h.detach()).clamp(min=1e-6)
        return -torch.expm1(q * F.logsigmoid(h)) / q
