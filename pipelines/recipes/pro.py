"""PRO: preference ranking optimisation."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.ranking import Pro
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.references import NoReference


def recipe(*, samples: int = 4, sft: float = 0.05) -> Recipe:
    """sum_k [log(e^{p_k T_k} + sum_{i > k} e^{p_i T_ki}) - p_k T_k] - sft (n - 1)^2 log pi(best).

    PRO, arXiv 2306.17492 (code read): p is the mean log-probability per token, T_ki = r_k - r_i,
    T_k = max_i T_ki; no reference. Equal rewards give no signal.
    """
    return one_stage(
        "pro",
        paper="Preference Ranking Optimization for Human Alignment, arXiv 2306.17492",
        source="code read",
        rollout=Sample(samples),
        compare=Cells({"y": "y@x"}),
        objective=Pro("y", sft),
        reference=NoReference(),
    )
