"""Exact verifiers: how right is an answer, and the hallucination measures over many answers.

CHAIR (Rohrbach et al., arXiv:1809.02156, equations 1 and 2; from memory): chair_i is the share of mentioned
objects that are not there, chair_s the share of captions that mention at least one such object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.worlds.glyphs.captions import mentions_of, read_caption
from pipelines.worlds.glyphs.questions import read_answer
from pipelines.worlds.glyphs.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class CaptionVerdict:
    """Counts for one caption. An object is right only if digit, colour and cell all are."""

    right: int  # distinct true mentions
    wrong: int  # mentions of what is not there, and repeated mentions
    missed: int  # objects of the scene that are not mentioned
    malformed: int  # clauses outside the grammar; a missing final stop counts as one

    @property
    def mentions(self) -> int:
        return self.right + self.wrong

    @property
    def value(self) -> int:
        """right - wrong - missed - malformed; the number of objects in the scene at best."""
        return self.right - self.wrong - self.missed - self.malformed

    @property
    def exact(self) -> bool:
        """All objects, nothing else, and well-formed."""
        return not (self.wrong or self.missed or self.malformed)


def verify_caption(scene: Scene, text: str) -> CaptionVerdict:
    reading = read_caption(text)
    there = set(mentions_of(scene))
    right = len(there.intersection(reading.mentions))
    return CaptionVerdict(
        right=right,
        wrong=len(reading.mentions) - right,
        missed=len(there) - right,
        malformed=reading.malformed,
    )


@dataclass(frozen=True, kw_only=True)
class AnswerVerdict:
    """Counts for one answer to a yes/no question; exactly one of right, wrong and malformed is 1."""

    right: int
    wrong: int
    missed: int = 0  # a question leaves nothing out; here so that all verdicts have the same parts
    malformed: int  # neither yes nor no

    @property
    def value(self) -> int:
        """+1 or -1."""
        return self.right - self.wrong - self.malformed


def verify_answer(truth: str, text: str) -> AnswerVerdict:
    """Compare an answer with the true one, "yes" or "no"."""
    answer = read_answer(text)
    right = answer == truth
    return AnswerVerdict(
        right=int(right), wrong=int(not right and answer is not None), malformed=int(answer is None)
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def summarise_captions(verdicts: Iterable[CaptionVerdict]) -> dict[str, float]:
    """chair_i, chair_s, object_recall and exact_scene over captions (each 0 when there is nothing to
    count).
    """
    every = list(verdicts)
    right, wrong = sum(v.right for v in every), sum(v.wrong for v in every)
    return {
        "chair_i": _share(wrong, right + wrong),
        "chair_s": _share(sum(v.wrong > 0 for v in every), len(every)),
        "object_recall": _share(right, right + sum(v.missed for v in every)),
        "exact_scene": _share(sum(v.exact for v in every), len(every)),
    }


def summarise_answers(truths: Iterable[str], texts: Iterable[str]) -> dict[str, float]:
    """accuracy and yes_ratio over yes/no answers; an answer that is neither counts as wrong and not as
    yes.
    """
    pairs = list(zip(truths, texts, strict=True))
    return {
        "accuracy": _share(sum(verify_answer(truth, text).right for truth, text in pairs), len(pairs)),
        "yes_ratio": _share(sum(read_answer(text) == "yes" for _, text in pairs), len(pairs)),
    }
