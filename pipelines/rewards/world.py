"""The glyphs world's exact verifier as a reward: rule-based, no model, no doubt."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.types import Prompt, Response, Score
from pipelines.worlds.glyphs import TASKS, Glyphs

COUNTS = ("right", "wrong", "missed", "malformed")


@dataclass(frozen=True)
class World:
    """Captions: right - wrong - missed - malformed clauses. Yes/no questions: +1 or -1.

    The parts of a caption's score are those counts; a question's only part is `correct`, 1 or 0, so that
    shares of hallucinated objects are over captions alone.
    """

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        kind = prompt.gold.get("kind")
        if kind not in TASKS or "scene" not in prompt.gold:
            return Score(value=None, missing="not_a_glyphs_row")
        verdict = Glyphs().verify(prompt.gold, response.text)
        if kind == "caption":
            return Score(value=verdict["value"], parts={name: verdict[name] for name in COUNTS})
        return Score(value=verdict["value"], parts={"correct": verdict["right"]})
