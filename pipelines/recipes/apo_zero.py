"""APO-zero: anchored, both sides."""

from __future__ import annotations

from pipelines.objectives.sides import ApoZero, Sides
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """1 - sigmoid(beta rho_w) + sigmoid(beta rho_l).

    Anchored preference optimisation, arXiv 2408.06266 (TRL's code read): raises the chosen and lowers the
    rejected answer. Not to be confused with accelerated preference optimisation (`apo_accelerated`).
    """
    return one_stage(
        "apo_zero",
        paper="Anchored Preference Optimization, arXiv 2408.06266",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Sides("text", beta, ApoZero()),
    )
