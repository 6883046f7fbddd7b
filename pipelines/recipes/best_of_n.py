"""Best-of-n: supervised tuning on the best of n samples."""

from __future__ import annotations

import math

from pipelines.comparisons import Cells
from pipelines.objectives.kl import TokenKl
from pipelines.objectives.nll import Nll
from pipelines.programs.choosing import Kept
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 8, kl: float = 0.05) -> Recipe:
    """-log pi(best of n), plus kl * KL(pi || ref) on it, per token.

    Baseline of the study of suboptimal on-policy data (its repository was read): likelihood of the best
    sample and a KL, there estimated on the sample, here exact at each of its tokens; its weight is inferred.
    Among equal scores the first sample is the best.
    """
    return one_stage(
        "best_of_n",
        paper="Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data, arXiv 2404.14367",
        source="code read; findings from memory",
        rollout=Sample(samples) >> Kept(-math.inf, name="w", best_only=True),
        compare=Cells({"y": "w@x"}),
        objective=Nll("y", "sequence_mean") + kl * TokenKl("y", "reverse", "sequence_mean"),
    )
