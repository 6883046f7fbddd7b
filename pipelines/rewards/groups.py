"""What a number means within its group: standardisation, win probabilities, advantages, length anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.rewards.aggregate import WeightedSum
from pipelines.rewards.base import AnyReward, judge_group, missing
from pipelines.types import MediaTable, Rollout, Score


def win_probabilities(rewards: Sequence[float]) -> NDArray[np.float64]:
    """P_i = mean_j sigma(r_i - r_j) over all answers of the group, i itself included: [n].

    The soft label of SPPO (arXiv 2405.00675; released code read). They average to 1/2 over the group.
    """
    r = np.asarray(rewards, dtype=np.float64)
    return (0.5 * (1 + np.tanh(0.5 * (r[:, None] - r[None, :])))).mean(axis=1)


def advantages(rewards: Sequence[float]) -> NDArray[np.float64]:
    """r_i - mean_j r_j without division by the deviation, as HARMO takes it: [n]."""
    r = np.asarray(rewards, dtype=np.float64)
    return r - r.mean()


def standardised(rewards: Sequence[float]) -> NDArray[np.float64]:
    """(r - mean) / std over the group, [n]; all 0 where every reward is the same."""
    centred = advantages(rewards)
    deviation = float(centred.std())
    return centred / deviation if deviation > 1e-12 else np.zeros_like(centred)


def length_penalty(length: int, anchor: float | None, most: float, tau: float) -> float:
    """-most * clip(|L - L*| / (tau L*), 0, 1) in reward units; 0 where no anchor L* is known.

    HARMO's generalised length penalty (arXiv 2510.05283; this form is inferred).
    """
    if anchor is None:
        return 0.0
    return -most * min(1.0, abs(length - anchor) / (tau * anchor)) if anchor > 0 else 0.0


@dataclass(frozen=True)
class Standardised:
    """A reward in units of its own deviation over the group, so that rewards of any scale can be summed.

    Missing scores stay missing and do not enter mean or deviation; the raw value is the part "raw".
    """

    reward: AnyReward

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        scores = await judge_group(self.reward, rollouts, media)
        present = [s.value for s in scores if s.value is not None]
        units = iter(standardised(present) if present else ())
        return [
            s if s.value is None else replace(s, value=float(next(units)), parts={**s.parts, "raw": s.value})
            for s in scores
        ]


@dataclass(frozen=True)
class WinProbability:
    """The mean probability of an answer to beat those of its group, under Bradley-Terry (SPPO's label)."""

    reward: AnyReward

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        scores = await judge_group(self.reward, rollouts, media)
        present = [s.value for s in scores if s.value is not None]
        shares = iter(win_probabilities(present) if present else ())
        return [
            s if s.value is None else replace(s, value=float(next(shares)), parts={**s.parts, "raw": s.value})
            for s in scores
        ]


@dataclass(frozen=True)
class VerifiedOr:
    """The rule where the prompt can be verified, which its gold column `key` says; else the model.

    The hybrid of HARMO (arXiv 2510.05283; notes read): a verifiable answer never sees the model.
    """

    rule: AnyReward
    model: AnyReward
    key: str = "answer"

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        scores = [missing("not_judged")] * len(rollouts)
        for verifiable, reward in ((True, self.rule), (False, self.model)):
            asked = [i for i, r in enumerate(rollouts) if (self.key in r.prompt.gold) is verifiable]
            if asked:
                given = await judge_group(reward, [rollouts[i] for i in asked], media)
                for i, score in zip(asked, given, strict=True):
                    scores[i] = score
        return scores


@dataclass(frozen=True)
class AnchoredLength:
    """`length_penalty` in tokens around the mean length of the group's correct answers; 0 if none is.

    An answer is correct when `correct` gives it at least `threshold`.
    """

    correct: AnyReward
    threshold: float = 1.0
    most: float = 1.0  # largest penalty, reward units
    tau: float = 0.5  # relative deviation at which it is reached

    def __post_init__(self) -> None:
        if not (self.most >= 0 and self.tau > 0):
            raise ValueError(f"AnchoredLength: expected most >= 0 and tau > 0, got {self.most}, {self.tau}")

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        verdicts = await judge_group(self.correct, rollouts, media)
        lengths = [len(rollout.response.tokens) for rollout in rollouts]
        right = [
            n
            for n, s in zip(lengths, verdicts, strict=True)
            if s.value is not None and s.value >= self.threshold
        ]
        anchor = float(np.mean(right)) if right else None
        return [Score(value=length_penalty(n, anchor, self.most, self.tau)) for n in lengths]


def harmo(rule: AnyReward, model: AnyReward, form: AnyReward, length: AnyReward | None = None) -> WeightedSum:
    """R = R_hybrid + R_length + R_format with equal weights (HARMO, arXiv 2510.05283; notes read).

    Hybrid and format are standardised over the group here, which the paper does not do: without it the
    component with the widest scale decides alone. The length penalty keeps its own units, since its cap is
    its meaning. Experimental: the primary text was not seen.
    """
    return WeightedSum(
        {
            "hybrid": Standardised(VerifiedOr(rule, model)),
            "format": Standardised(form),
            "length": length or AnchoredLength(rule),
        }
    )
