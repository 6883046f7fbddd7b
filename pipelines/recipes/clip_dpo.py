"""CLIP-DPO: pairs by a similarity score, with gates on gap, length and the winner's own score."""

from __future__ import annotations

import math

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Pairs
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.rewards.gates import Floors, LengthRatio, MinGap


def recipe(
    *,
    samples: int = 8,
    beta: float = 0.1,
    gap: float = 2.0,
    length_ratio: float = 1.5,
    floor: float | None = None,
) -> Recipe:
    """DPO on best against worst where scores differ by `gap` and lengths by at most a ratio.

    CLIP-DPO, arXiv 2408.10433 (third-party note): answers are ranked by CLIP similarity, on a scale where a
    `gap` of 2 is large; `floor` refuses winners with a lower score. There small captioners write the
    candidates and text-heavy pictures are filtered out of the data; here the policy samples them. The run's
    reward is the ranking. Inferred: beta, `length_ratio`, no floor by default.
    """
    gates = (MinGap(gap), LengthRatio(length_ratio), Floors(-math.inf if floor is None else floor))
    return one_stage(
        "clip_dpo",
        paper="CLIP-DPO: Vision-Language Models as a Source of Preference for Fixing Hallucinations in "
        "LVLMs, arXiv 2408.10433",
        source="third-party note; beta and length ratio inferred. Candidates of the policy are ours",
        rollout=Sample(samples) >> Pairs(gates),
        objective=Pair("text", beta),
        experimental=True,
    )
