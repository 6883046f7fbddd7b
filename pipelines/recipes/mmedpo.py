"""MMedPO: pairs of answers and of locally blackened pictures, weighted by how much they matter."""

from __future__ import annotations

from typing import Literal

from pipelines.objectives.pair import Pair
from pipelines.objectives.weightings import ZScore
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.noise import NearBlack
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.perturbations.selectors import HeatMap
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Damage
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import TEXT_AND_MEDIA
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    regions: Literal["boxes", "heat_map"] = "boxes",
    text_relevance: str = "value",
    media_relevance: str = "value",
    high: float = 2.0,
    std: float = 10.0,
) -> Recipe:
    """s' * (text pair + local media pair), s' = clip(1 + z-score of a relevance, 0, high).

    MMedPO, arXiv 2412.06141 (code and third-party note read). Relevances are parts of the winner's score:
    there several medical language models agree on `text_relevance`, and a detector's confidence is
    `media_relevance`; "value" takes the reward itself. A part that the reward does not give leaves the term
    without weight. Regions: the row's `heat_map`, above its mean - one deviation, as MedKLIP gives it there,
    or the `boxes` of what the answer speaks of; they are painted N(0, `std`) in grey levels, nearly black as
    in the released code. The text pair is the policy's best and worst; there the rejected answer is the worst
    of its samples or has injected errors. Inferred: centre and bounds of s', that both pairs come from one
    group.
    """
    selector = HeatMap() if regions == "heat_map" else KeyRegions(GraphRank(5), KnownBoxes())
    return one_stage(
        "mmedpo",
        paper="MMedPO: Aligning Medical Vision-Language Models with Clinical-Aware Multimodal Preference "
        "Optimization, arXiv 2412.06141",
        source="code read; third-party note; bounds of the weight inferred",
        rollout=best_and_worst(samples, min_gap) >> Damage("m", NearBlack(std), selector),
        compare=TEXT_AND_MEDIA,
        objective=Pair("text", beta, weighting=ZScore(text_relevance, high=high))
        + Pair("media", beta, weighting=ZScore(media_relevance, high=high)),
    )
