"""APO-down: anchored, for a policy better than its chosen answers."""

from __future__ import annotations

from pipelines.objectives.sides import ApoDown, Sides
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """sigmoid(beta rho_w) + 1 - sigmoid(beta (rho_w - rho_l)).

    Anchored preference optimisation, arXiv 2408.06266 (TRL's code read): lowers both answers, the rejected
    more.
    """
    return one_stage(
        "apo_down",
        paper="Anchored Preference Optimization, arXiv 2408.06266",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Sides("text", beta, ApoDown()),
    )
