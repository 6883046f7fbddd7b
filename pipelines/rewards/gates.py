"""Gates: which pairs of a scored group are fit to learn from, and the countable reason when one is not.

A gate is a pure function `(rollouts, scores, winner, loser) -> reason | None` over indices into the group. It
never sees a missing score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.rewards.similarity import token_jaccard
from pipelines.types import Rollout, Score

Similar = Callable[[str, str], float]  # two texts -> [0, 1]


class Gate(Protocol):
    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        """Why the pair is refused, in one countable word; None when it passes."""
        ...


def _value(scores: Sequence[Score], index: int) -> float:
    value = scores[index].value
    if value is None:
        raise ValueError(f"a gate was asked about response {index}, whose score is missing")
    return value


@dataclass(frozen=True)
class NoTies:
    """The winner scores strictly higher."""

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        return None if _value(scores, winner) > _value(scores, loser) else "tie"


@dataclass(frozen=True)
class MinGap:
    """The scores differ by at least `gap`, and by `of_std` deviations of the group's scores if that is more.

    OViP (arXiv 2505.15963; released code read): gap > 2 max(1.5, std), so `MinGap(3.0, of_std=2.0)`; there
    the gap is strictly larger, here at least. CLIP-DPO (arXiv 2408.10433; note read): `MinGap(2.0)`.
    """

    gap: float
    of_std: float = 0.0

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        spread = float(np.std([s.value for s in scores if s.value is not None])) if self.of_std else 0.0
        needed = max(self.gap, self.of_std * spread)
        return None if _value(scores, winner) - _value(scores, loser) >= needed else "gap_too_small"


@dataclass(frozen=True)
class Floors:
    """The winner is good enough in itself, and the loser bad enough."""

    winner_at_least: float = -math.inf
    loser_at_most: float = math.inf

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        if _value(scores, winner) < self.winner_at_least:
            return "winner_below_floor"
        return "loser_above_ceiling" if _value(scores, loser) > self.loser_at_most else None


@dataclass(frozen=True)
class LengthRatio:
    """The longer answer has at most `most` times the tokens of the shorter: length must not give it away."""

    most: float

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        a, b = (len(rollouts[index].response.tokens) for index in (winner, loser))
        return None if max(a, b) <= self.most * min(a, b) else "length_ratio"


@dataclass(frozen=True)
class Similarity:
    """The texts are at most `most` alike, else there is nothing to learn, and at least `least`.

    SPORT (arXiv 2504.21561; released code read) drops near-duplicates by BLEU, with a threshold of 0.3.
    """

    most: float = 1.0
    least: float = 0.0
    measure: Similar = token_jaccard

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        alike = self.measure(rollouts[winner].response.text, rollouts[loser].response.text)
        if alike > self.most:
            return "too_similar"
        return "too_different" if alike < self.least else None


@dataclass(frozen=True)
class Confident:
    """Both scores are trusted at least so much: the gate behind an ensemble or a vote."""

    least: float

    def __call__(
        self, rollouts: Sequence[Rollout], scores: Sequence[Score], winner: int, loser: int
    ) -> str | None:
        trust = min(scores[winner].confidence, scores[loser].confidence)
        return None if trust >= self.least else "not_confident"


def distinct(rollouts: Sequence[Rollout], most: float = 1.0, measure: Similar = token_jaccard) -> list[int]:
    """Indices of answers that differ: each one that is at least `most` like an earlier kept one is left out.

    With `most` 1 and the default measure, answers with the same set of words count as duplicates.
    """
    kept: list[int] = []
    for index, rollout in enumerate(rollouts):
        text = rollout.response.text
        if all(measure(text, rollouts[other].response.text) < most for other in kept):
            kept.append(index)
    return kept


def admitted(
    rollouts: Sequence[Rollout], scores: Sequence[Score], gates: Sequence[Gate], most: int = 1
) -> tuple[list[tuple[int, int]], Counter[str]]:
    """Up to `most` pairs (winner, loser) that pass every gate, and why others were refused.

    The i-th best answer meets the i-th worst one. Missing scores never take part; among equal scores the
    earlier response ranks higher. A pair is refused for the reason of its first closed gate, or as
    "same_response" when a judge that is not exact scored one answer twice.
    """
    known = [i for i, score in enumerate(scores) if score.value is not None]
    ranked = sorted(known, key=lambda i: (-_value(scores, i), i))
    pairs: list[tuple[int, int]] = []
    refused: Counter[str] = Counter()
    if len(ranked) < 2:
        refused["too_few_responses" if len(scores) < 2 else "missing_score"] += 1
    for winner, loser in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
        if len(pairs) == most:
            break
        same = rollouts[winner].response == rollouts[loser].response
        reasons = (gate(rollouts, scores, winner, loser) for gate in gates)
        reason = next((reason for reason in reasons if reason), "same_response" if same else None)
        if reason is None:
            pairs.append((winner, loser))
        else:
            refused[reason] += 1
    return pairs, refused
