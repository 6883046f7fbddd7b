"""Losses of preference models, as pure functions of rewards, margins and weights.

N pairs; r_w and r_l are rewards of winner and loser; K heads or prototypes. Losses are per item, [N], unless
said otherwise, so that the caller reduces.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bradley_terry(winner: Tensor, loser: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_w - r_l - margin), [N] (Bradley and Terry 1952; from memory).

    WorldPM (arXiv 2505.10527; note read) is this on forum pairs, with the scalar at the end token and an
    empty system prompt.
    """
    return -functional.logsigmoid(winner - loser - margin)


def centring(rewards: Tensor) -> Tensor:
    """|mean reward| of a batch, []: keeps the free shift of Bradley-Terry near 0.

    LLaVA-RLHF adds 1e-3 of it (arXiv 2309.14525; released code read).
    """
    return rewards.mean().abs()


def scorer_dpo(
    winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor, beta: float = 0.1
) -> Tensor:
    """-log sigmoid(beta [(s - s_ref)(q, c+) - (s - s_ref)(q, c-)]), [N]: DPO on a scalar scorer.

    FinSage's re-ranker (arXiv 2504.14493; note read, loss inferred): c+ is gold, c- a hard negative.
    """
    return -functional.logsigmoid(beta * ((winner - reference_winner) - (loser - reference_loser)))


def mixture(log_weights: Tensor, margins: Tensor) -> Tensor:
    """-log sum_k f_k sigmoid(m_k), [N], from log f [N, K] and margins r_k(w) - r_k(l) [N, K].

    MiCRo stage 1 (arXiv 2505.24846; released code read), with f from a router over the prompt; and the
    context-conditioned reward model p(w > l | x) = sum_z p(z | x) p(w > l | x, z) (arXiv 2407.14916; model
    card read), with f = p(z | x).
    """
    return -torch.logsumexp(log_weights + functional.logsigmoid(margins), dim=-1)


def negative_entropy(log_weights: Tensor) -> Tensor:
    """sum_k f_k log f_k, [N]; least, -log K, when uniform. MiCRo adds 0.5 of its mean: no head may starve."""
    return (log_weights.exp() * log_weights).sum(-1)


def hedge_targets(log_weights: Tensor, losses: Tensor, tau: float) -> Tensor:
    """omega_k proportional to f_k exp(-L_k / tau), [N, K], without gradient: MiCRo stage 2.

    L_k = -log sigmoid of head k's margin on a few context-labelled pairs; the router is then trained by
    cross-entropy towards omega. A large tau keeps f, a small one picks the best head.
    """
    return torch.softmax(log_weights.detach() - losses.detach() / tau, dim=-1)


def soft_cross_entropy(log_weights: Tensor, targets: Tensor) -> Tensor:
    """-sum_k omega_k log f_k, [N]."""
    return -(targets * log_weights).sum(-1)


def ideal_point_reward(answers: Tensor, ideal: Tensor) -> Tensor:
    """-||f(y) - a||, [N], for projected answers and ideal points [N, d].

    PAL-A (arXiv 2406.08469; released code read): the margin of a pair is ||f(l) - a|| - ||f(w) - a||, and a
    user's ideal point a mixes K prototypes.
    """
    return -(answers - ideal).square().sum(-1).add(1e-12).sqrt()


def prototype_reward(answers: Tensor, wanted: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cos(f(y), g(x)), [N]: PAL-B, with g(x) a user's mixture of prompt-dependent prototypes."""
    return scale * functional.cosine_similarity(answers, wanted, dim=-1)


def attribute_regression(predicted: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error over the rated attributes of each answer, [N]; nan in `ratings` [N, M]: not rated.

    DPA's multi-head reward model (arXiv 2402.18571; README read), 10 attributes from 0 to 100.
    """
    rated = ~torch.isnan(ratings)
    errors = (predicted - torch.nan_to_num(ratings)).square() * rated
    return errors.sum(-1) / rated.sum(-1).clamp(min=1)


def plackett_luce(scores: Tensor, ranked: Tensor | None = None) -> Tensor:
    """sum_i log(1 + sum_{j > i} exp(s_j - s_i)), [N], for scores [N, n] sorted from best to worst.

    The listwise part of RankList (abstract read; formula inferred). `ranked` [N, n] is False at padding,
    which comes last. With n = 2 it is RankNet.
    """
    kept = torch.ones_like(scores, dtype=torch.bool) if ranked is None else ranked
    padded = scores.masked_fill(~kept, -torch.inf)
    tails = torch.logcumsumexp(padded.flip(-1), dim=-1).flip(-1)
    return torch.where(kept, tails - scores, torch.zeros_like(scores)).sum(-1)


def skip_wise(scores: Tensor, labels: Tensor, skip: int = 1, least_gap: float = 0.0) -> Tensor:
    """Mean RankNet loss over the pairs (i, i + k), k = 1 .. skip, of lists sorted from best to worst: [N].

    RankList's local part (abstract read; formula inferred): `skip` grows over training, and pairs whose
    labels [N, n] differ by less than `least_gap`, or not at all, are left out.
    """
    total, count = torch.zeros_like(scores[:, 0]), torch.zeros_like(scores[:, 0])
    for k in range(1, min(skip, scores.shape[1] - 1) + 1):
        gap = labels[:, :-k] - labels[:, k:]
        counted = ((gap >= least_gap) & (gap > 0)).to(scores.dtype)
        total = total + (bradley_terry(scores[:, :-k], scores[:, k:]) * counted).sum(-1)
        count = count + counted.sum(-1)
    return total / count.clamp(min=1)
