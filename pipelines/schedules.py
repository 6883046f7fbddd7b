"""In which order prompts are trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Order(Protocol):
    """An order over the prompts of a run. `samples` > 0 asks for a survey of every prompt first."""

    @property
    def samples(self) -> int: ...

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        """Positions of the prompts in training order, given one difficulty each."""
        ...


@dataclass(frozen=True)
class InOrder:
    """The order of the data."""

    @property
    def samples(self) -> int:
        return 0

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        return list(range(len(difficulty)))


@dataclass(frozen=True)
class Thirds:
    """Easy, medium, hard: three equal parts by rank of difficulty, each kept in the order of the data.

    MFPO (arXiv 2410.15334, taken from a third-party note): prompts are ranked by semantic entropy, cut into
    equal thirds and trained on from easy to hard.
    """

    samples: int = 8  # answers per prompt for the survey

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        ranked = sorted(range(len(difficulty)), key=lambda i: (difficulty[i], i))
        size = math.ceil(len(ranked) / 3)
        parts = [sorted(ranked[start : start + size]) for start in range(0, len(ranked), max(size, 1))]
        return [position for part in parts for position in part]


def semantic_entropy(meanings: Sequence[Hashable]) -> float:
    """Entropy (nats) over clusters of sampled answers that mean the same.

    Farquhar et al. 2024 cluster by mutual entailment; here two answers are in one cluster when their
    `meanings` are equal. 0 when all agree, log(n) when all differ. The discrete form is implied by MFPO's
    "semantic entropy over K samples" (inferred).
    """
    if not meanings:
        raise ValueError("semantic entropy needs at least one answer, got none")
    total = len(meanings)
    return -sum(n / total * math.log(n / total) for n in Counter(meanings).values()) + 0.0


def meaning(text: str) -> tuple[str, ...]:
    """A bag of lower-cased words: word order and repetition do not change what an answer names."""
    return tuple(sorted({word.strip(".,;:!?").lower() for word in text.split()} - {""}))
