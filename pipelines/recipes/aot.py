"""AOT: stochastic dominance by sorted margins."""

from __future__ import annotations

from pipelines.objectives.quantiles import Aot
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Recipe:
    """DPO's link on sort(log pi_w - log pi_l) - sort(log ref_w - log ref_l) over the batch.

    Alignment via optimal transport, arXiv 2406.05882 (TRL's code read: `aot`). The batch is coupled; here it
    is the global batch of a step, where TRL sorts within each micro-batch.
    """
    return one_stage(
        "aot",
        paper="Distributional Preference Alignment of LLMs via Optimal Transport, arXiv 2406.05882",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Aot("text", beta, smoothing),
    )
