"""In which order prompts are trained on."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

_CLAUSE_ENDS = re.compile(r"[.,;:!?]+(?=\s|$)|\band\b")
_WORDS = re.compile(r"[\w'-]+")


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
    equal thirds and trained on from easy to hard. The order inside a third is inferred. Sizes differ by at
    most one prompt; among equal difficulties the earlier prompt counts as easier.

    Raises ValueError for a difficulty that is not finite.
    """

    samples: int = 8  # answers per prompt for the survey

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"Thirds(samples=...): a survey needs at least 2 answers, got {self.samples}")

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        unknown = [i for i, value in enumerate(difficulty) if not math.isfinite(value)]
        if unknown:
            first = unknown[0]
            raise ValueError(f"difficulty of prompt {first}: expected a number, got {difficulty[first]}")
        ranked = sorted(range(len(difficulty)), key=lambda i: (difficulty[i], i))
        cuts = [len(ranked) * part // 3 for part in range(4)]
        return [position for part in range(3) for position in sorted(ranked[cuts[part] : cuts[part + 1]])]


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


def meaning(text: str) -> tuple[tuple[str, ...], ...]:
    """What an answer says, up to order: its clauses as a set, each the set of its lower-cased words.

    Clauses end at punctuation and at "and". "a red seven and a blue one." means the same as "a blue one and
    a red seven", and not the same as "a blue seven and a red one". A coarse stand-in for entailment:
    paraphrases count as different.
    """
    clauses = (_WORDS.findall(clause) for clause in _CLAUSE_ENDS.split(text.lower()))
    return tuple(sorted({tuple(sorted(set(words))) for words in clauses if words}))
