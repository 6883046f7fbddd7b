"""What the policy is compared with. Values only: the learner holds the weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that the run started from, frozen; with LoRA the model without its adapter."""


@dataclass(frozen=True, kw_only=True)
class NoReference(Reference):
    """None: no reference is loaded and no term may read one."""


@dataclass(frozen=True, kw_only=True)
class Blended(Reference):
    """Every `every` steps reference <- (1 - alpha) reference + alpha policy.

    TR-DPO, arXiv 2404.09656 (TRL's code read): soft update with alpha = 0.6 every 512 steps; alpha = 1 is the
    hard update, and `every` = 1 with a small alpha an exponential moving average.
    """

    alpha: float = 0.6
    every: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or self.every < 1:
            raise ValueError(
                f"Blended: expected 0 < alpha <= 1 and every >= 1, got {self.alpha} and {self.every}"
            )


@dataclass(frozen=True, kw_only=True)
class Harmonic(Reference):
    """The weighted harmonic mean of several frozen models with one vocabulary, per answer:
    1 / sum_k alpha_k / pi_k(y). The model of the run comes first.

    MRPO, arXiv 2405.16388 (code read); the released code for two models attaches each alpha to the other
    model, here the paper's formula is used. `clip` bounds how far the others may move the log-probability l
    of the first: into [l (1 + e), l (1 - e)], with e = clip * |b_side| / (|b_w| + |b_l|); 0 keeps the first
    model alone, None does not clip.
    """

    paths: tuple[str, ...]  # checkpoints beside the run's model
    shares: tuple[float, ...]  # alpha of the run's model and of each path; sum 1
    clip: float | None = 0.1

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.paths) + 1 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(
                f"Harmonic: expected {len(self.paths) + 1} shares that sum to 1, got {self.shares}"
            )
