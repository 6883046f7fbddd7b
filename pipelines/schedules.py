"""In which order prompts are trained on."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

_CLAUSE_ENDS = re.compile(r"[.,;:!?]+(?=\s|$)|\band\b")
_WORDS = re.compile(r"[\w'-]+")


# "entropy": semantic entropy over n sampled answers, hard where they disagree; "score_gap": best minus worst
# score of n sampled answers, hard where it is small; "reference_gap": log p(chosen) - log p(rejected) of the
# row's two columns under the weights at the start of the stage, hard where it is small; "strength": the row's
# column of that name, how strongly its rejected side was damaged, hard where that is weak
Key = Literal["entropy", "score_gap", "reference_gap", "strength"]


class Order(Protocol):
    """An order over the prompts of a stage. With a `key` every prompt is surveyed first."""

    @property
    def key(self) -> Key | None: ...

    @property
    def samples(self) -> int:
        """Answers per prompt that the survey may draw."""
        ...

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        """Positions of the prompts in training order, given one difficulty each: larger is harder."""
        ...


@dataclass(frozen=True)
class InOrder:
    """The order of the data."""

    @property
    def key(self) -> Key | None:
        return None

    @property
    def samples(self) -> int:
        return 0

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        return list(range(len(difficulty)))


@dataclass(frozen=True)
class EasyToHard:
    """Equal parts by rank of difficulty, the easy ones first, each kept in the order of the data.

    Curri-DPO and TEMPLE train from easy to hard pairs, by score gap, reference log-prob gap or strength of
    the perturbation (arXiv ids and what was read: their recipes). Sizes differ by at most one prompt; among
    equal difficulties the earlier prompt counts as easier.

    Raises ValueError for a difficulty that is not finite.
    """

    samples: int = 8  # answers per prompt for the survey
    key: Key = "entropy"
    parts: int = 3

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.key in ("entropy", "score_gap") and self.samples < 2:
            raise ValueError(f"{name}(samples=...): a survey needs at least 2 answers, got {self.samples}")
        if self.parts < 1:
            raise ValueError(f"{name}(parts=...): expected at least 1, got {self.parts}")

    def __call__(self, difficulty: Sequence[float]) -> list[int]:
        return [position for part in self.ranked(difficulty) for position in part]

    def ranked(self, difficulty: Sequence[float]) -> list[list[int]]:
        """Positions of each part, the easiest part first."""
        unknown = [i for i, value in enumerate(difficulty) if not math.isfinite(value)]
        if unknown:
            first = unknown[0]
            raise ValueError(f"difficulty of prompt {first}: expected a number, got {difficulty[first]}")
        ranked = sorted(range(len(difficulty)), key=lambda i: (difficulty[i], i))
        cuts = [len(ranked) * part // self.parts for part in range(self.parts + 1)]
        return [sorted(ranked[start:stop]) for start, stop in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Thirds(EasyToHard):
    """Easy, medium, hard.

    MFPO (arXiv 2410.15334, taken from a third-party note): prompts are ranked by semantic entropy, cut into
    equal thirds and trained on from easy to hard. The order inside a third is inferred.
    """


@dataclass(frozen=True)
class HardToEasy(EasyToHard):
    """The same parts in the opposite order: a control for a curriculum."""

    def ranked(self, difficulty: Sequence[float]) -> list[list[int]]:
        return super().ranked(difficulty)[::-1]


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
