"""Yes/no questions about a scene in the three kinds of POPE (Li et al., arXiv:2305.10355, section 4; from
memory).

A question asks whether a kind of object, say a red seven, is anywhere in the picture. The questions of the
three kinds differ in what they ask when the answer is no:

- random: any absent kind;
- popular: an absent kind among the most frequent ones;
- adversarial: an absent kind that the language prior ties to what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.worlds.glyphs.prior import successor
from pipelines.worlds.glyphs.scenes import KINDS, POPULAR, Kind, Scene
from pipelines.worlds.glyphs.vocabulary import COLOURS, DIGITS

QuestionKind = Literal["random", "popular", "adversarial"]
QUESTION_KINDS: tuple[QuestionKind, ...] = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True)
class Question:
    asks: Kind  # (digit, colour)
    answer: Literal["yes", "no"]

    @property
    def text(self) -> str:
        digit, colour = self.asks
        return f"is there a {COLOURS[colour]} {DIGITS[digit]} ?"


def absent_kinds(scene: Scene, kind: QuestionKind) -> tuple[Kind, ...]:
    """The kinds that a question of this kind may ask about when the answer is to be no; never empty.

    For adversarial questions only the prior's own next object, the successor of the last one, counts if it is
    absent; else the absent successors of the others; else (all are there) any absent kind.
    """
    present = {glyph.kind for glyph in scene.objects}
    absent = tuple(candidate for candidate in KINDS if candidate not in present)
    if kind == "random":
        return absent
    if kind == "popular":
        return tuple(candidate for candidate in POPULAR if candidate not in present)
    followers = [successor(glyph.kind) for glyph in reversed(scene.objects)]
    return tuple(follower for follower in followers if follower not in present)[:1] or absent


def make_question(scene: Scene, kind: QuestionKind, answer: Literal["yes", "no"], seed: int) -> Question:
    """A question with this true answer. The same arguments always give the same question."""
    rng = np.random.default_rng([seed, QUESTION_KINDS.index(kind), len(answer)])
    if answer == "yes":
        asks = scene.objects[int(rng.integers(len(scene.objects)))].kind
    else:
        choices = absent_kinds(scene, kind)
        asks = choices[int(rng.integers(len(choices)))]
    return Question(asks=asks, answer=answer)


def read_answer(text: str) -> Literal["yes", "no"] | None:
    """ "yes" or "no" when the text says just that (a final stop is allowed), else None."""
    match text.lower().replace(".", " ").split():
        case ["yes"]:
            return "yes"
        case ["no"]:
            return "no"
        case _:
            return None
