"""RWR: reward-weighted regression."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Cells
from pipelines.objectives.nll import ExpReward, Nll
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.references import NoReference


def recipe(*, samples: int = 4, temperature: float = 1.0, kind: Literal["exp", "sigmoid"] = "exp") -> Recipe:
    """-exp(r / T) log pi(y) per token over all samples; or sigmoid(r / T) in place of exp.

    Baseline of the study of suboptimal on-policy data (its repository was read).
    """
    return one_stage(
        "rwr",
        paper="Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data, arXiv 2404.14367",
        source="code read; findings from memory",
        rollout=Sample(samples),
        compare=Cells({"y": "y@x"}),
        objective=Nll("y", "sequence_mean", ExpReward(temperature, kind=kind)),
        reference=NoReference(),
    )
