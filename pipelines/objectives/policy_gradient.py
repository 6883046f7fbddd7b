"""Policy gradients on groups of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, EdgeTable, Reads, log_ratios
from pipelines.objectives.terms import (
    CellTerm,
    EdgeTerm,
    Reduction,
    grouped_mean,
    known,
    reduced,
    reduced_weights,
)

Advantage = Literal["group", "centered", "rloo", "raw"]
Ratio = Literal["token", "sequence", "whole"]  # per token, their geometric mean, their product


@dataclass(frozen=True)
class PolicyGradient(CellTerm):
    """-min(u A, clip(u, 1 - clip, 1 + clip_high) A) + kl * k3 per token, u = pi / pi_behaviour.

    GRPO, arXiv 2402.03300 (TRL's code read). A comes from the scores of the comparison's cells: "group"
    (r - mean) / (std + 1e-4), "centered" r - mean (HARMO, third-party note), "rloo" r - mean of the others,
    "raw" r. k3 = exp(-d) + d - 1, d = log pi - log pi_ref, the low-variance estimate of KL(pi || pi_ref).
    `ratio` "sequence" takes the geometric mean of u over the answer (GSPO; with the reduction "sum" LUSPO),
    "whole" its product (RLOO in TRL). `clip` = None leaves the ratio out: -A log pi. Where nobody sampled a
    token, u = 1. "batch_tokens" is DAPO's reduction; Dr. GRPO's is 1 / (longest answer) times "sum".
    `ceiling` bounds the unclipped u as well (INTELLECT-2, arXiv 2505.07291); `kl_ratio` multiplies k3 by u,
    so that its mean over old samples is the KL of today's policy (arXiv 2512.02556). Both: TRL's code read.

    A cell without a score has weight 0 and takes no part in its group's mean.
    """

    advantage: Advantage = "group"
    clip: float | None = 0.2
    clip_high: float | None = None  # None: as `clip`
    kl: float = 0.0
    reduction: Reduction = "sequence_mean"
    ratio: Ratio = "token"
    part: str = "value"
    ceiling: float | None = None
    kl_ratio: bool = False

    @property
    def views(self) -> frozenset[str]:
        reads = {"policy"} | ({"reference"} if self.kl else set[str]())
        return frozenset(reads | ({"behaviour"} if self.clip is not None else set[str]()))

    @property
    def max_lag(self) -> int | None:
        return 0 if self.clip is None else None

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        weights = torch.where(cells.part(self.part).isnan(), 0.0, cells.weight)
        return reduced_weights(weights, reads.lengths[cells.cell], self.reduction)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        policy, lengths = reads.tokens["policy"][cells.cell], reads.lengths[cells.cell]
        advantage = self.advantages(reads, cells).to(policy.dtype)[:, None]
        if self.clip is None:
            tokens, logs = -advantage * policy, torch.zeros_like(policy)
        else:
            sampled = reads.tokens["behaviour"][cells.cell]
            logs = policy - torch.where(sampled.isnan(), policy.detach(), sampled)
            tokens = self.surrogate(logs, advantage, policy, lengths)
        if self.kl:
            d = log_ratios(reads)[cells.cell]
            k3 = torch.expm1(-d) + d
            tokens = tokens + self.kl * (k3 * self.pooled(logs, lengths).exp() if self.kl_ratio else k3)
        return reduced(torch.where(reads.mask[cells.cell], tokens, 0.0), lengths, self.reduction)

    def surrogate(self, logs: Tensor, advantage: Tensor, policy: Tensor, lengths: Tensor) -> Tensor:
        """[C, L] or [C, 1] from log u and log pi [C, L], 0 outside the mask, and A [C, 1]."""
        clip = self.clip or 0.0
        ratio = self.pooled(logs, lengths).exp()
        clipped = ratio.clamp(1 - clip, 1 + (clip if self.clip_high is None else self.clip_high))
        return -torch.minimum(ratio.clamp(max=self.ceiling or torch.inf) * advantage, clipped * advantage)

    def pooled(self, logs: Tensor, lengths: Tensor) -> Tensor:
        """[C, L], or [C, 1] where the answer has one ratio."""
        if self.ratio == "token":
            return logs
        whole = logs.sum(-1, keepdim=True)
        return whole / lengths.clamp(min=1)[:, None] if self.ratio == "sequence" else whole

    def advantages(self, reads: Reads, cells: CellTable) -> Tensor:
        """[C], 0 where the score is missing."""
        scores = cells.part(self.part)
        counted = (cells.weight > 0) & ~scores.isnan()
        scores = scores.nan_to_num().to(torch.float64)
        if self.advantage == "raw":
            return torch.where(counted, scores, 0.0)
        mean, number = grouped_mean(scores, counted, cells.owner, reads.size)
        centered = torch.where(counted, scores - mean, 0.0)
        if self.advantage == "centered":
            return centered
        scale = number / (number - 1).clamp(min=1)
        if self.advantage == "rloo":
            return torch.where(number > 1, centered * scale, 0.0)
        square, _ = grouped_mean(centered**2, counted, cells.owner, reads.size)
        return centered / ((square * scale).sqrt() + 1e-4)


@dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """-A log pi, summed over tokens, with the leave-one-out advantage: RLOO, arXiv 2402.14740 (from memory).

    Without a ratio, the samples may not be older than the newest weights.
    """

    advantage: Advantage = "rloo"
    clip: float | None = None
    reduction: Reduction = "sum"


@dataclass(frozen=True)
class Nash(EdgeTerm):
    """beta sum_t sg(log pi - log pi_ref)_t log pi_t - (P - 1/2) log pi of the policy's own answer.

    Nash-MD, arXiv 2312.00886 (TRL's code read). The edge's winner side is the policy's answer and its loser
    side that of the mixture, whichever is better: P = sigmoid(score gap) of a score part, or with part = None
    the edge's probability. An edge without these scores has weight 0.
    """

    beta: float = 0.1
    part: str | None = "value"

    @property
    def max_lag(self) -> int:
        return 0

    def weights(self, reads: Reads, table: EdgeTable) -> Tensor:
        return (
            table.weight if self.part is None else torch.where(known(*table.part(self.part)), table.weight, 0)
        )

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        tokens = reads.tokens["policy"][table.winner]
        kl = log_ratios(reads)[table.winner].detach()
        if self.part is None:
            p = table.probability
        else:
            own, other = table.part(self.part)
            p = torch.sigmoid((own - other).nan_to_num())
        return ((self.beta * kl - (p - 0.5)[:, None]) * tokens).sum(-1)
