"""Critic-V: a critic that finds the errors that were put into an answer."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.perturbations.text import SwapWords
from pipelines.programs.choosing import Choose
from pipelines.programs.given import Gold
from pipelines.programs.judging import CRITIQUE, AskCritique
from pipelines.programs.sampling import JudgedBy, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import plug
from pipelines.recipes._text import one_stage
from pipelines.rewards.rules import Jaccard
from pipelines.rewards.similarity import words

LEXICON = "pipelines.worlds.glyphs.edits:LEXICON"


def words_in(text: str) -> frozenset[str]:
    """All words of a critique: the errors that it names, and what it says around them."""
    return frozenset(words(text))


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    errors: int = 5,
    judge_weight: float = 0.0,
    lexicon: str = LEXICON,
    template: str = CRITIQUE,
) -> Recipe:
    """DPO on critiques, scored by Jaccard(named, inserted) + `judge_weight` * the run's reward.

    Critic-V, arXiv 2411.18203 (third-party note), trains the critic alone; its reasoner is frozen. There
    GPT-4o inserts 1 to 5 errors; here words of the gold answer are swapped for others of their kind in a
    `lexicon` ("module:mapping"), and errors are compared word by word. The judge's weight is not known.
    """
    program = (
        Gold("g")
        >> AskCritique("c", of="g", swap=SwapWords(plug(lexicon)), most=errors, template=template)
        >> Sample(samples, under="c", judged=False)
        >> JudgedBy("y", Jaccard(read=words_in), run_weight=judge_weight)
        >> Choose(min_gap)
    )
    return one_stage(
        "critic_v",
        paper="Critic-V: VLM Critics Help Catch VLM Errors in Multimodal Reasoning, arXiv 2411.18203",
        source="third-party note; weight of the judge and comparison by words inferred",
        rollout=program,
        compare=Edges({"text": ("w@c", "l@c")}),
        objective=Pair("text", beta),
        experimental=True,
    )
