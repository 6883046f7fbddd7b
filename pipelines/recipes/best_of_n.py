"""Best-of-n: supervised tuning on the best of n samples."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.kl import TokenKl
from pipelines.objectives.nll import Nll
from pipelines.programs.choosing import best_and_worst
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    kl: float = 0.05,
) -> Recipe:
    """-log pi(best of n), plus kl * KL(pi || ref) on it, per token.

    Baseline of the study of suboptimal on-policy data (its repository was read): likelihood of the best
    sample and an approximate KL.
    """
    return one_stage(
        "best_of_n",
        paper="Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data, arXiv 2404.14367",
        source="code read; findings from memory",
        rollout=best_and_worst(samples, min_gap),
        compare=Cells({"y": "w@x"}),
        objective=Nll("y", "sequence_mean") + kl * TokenKl("y", "reverse", "sequence_mean"),
    )
