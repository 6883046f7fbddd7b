"""Pref-FT: supervised tuning on the chosen answers."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    pairs: Pairs = "recorded",
    samples: int = 8,
    min_gap: float = 0.0,
) -> Recipe:
    """-log pi(w) per token, no rejected answer.

    Baseline of the study of suboptimal on-policy data (its repository was read).
    """
    return one_stage(
        "pref_ft",
        paper="Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data, arXiv 2404.14367",
        source="code read; findings from memory",
        rollout=pairs_from(pairs, samples, min_gap),
        compare=Cells({"y": "w@x"}),
        objective=Nll("y", "sequence_mean"),
        reference=NoReference(),
    )
