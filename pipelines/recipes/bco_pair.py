"""BCO for pairs, without a running shift."""

from __future__ import annotations

from pipelines.objectives.sides import BcoPair, Sides
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """-log sigmoid(beta rho_w) - log sigmoid(-beta rho_l).

    TRL's `bco_pair` (code read). The method with its running mean is `bco`.
    """
    return one_stage(
        "bco_pair",
        paper="Binary Classifier Optimization, arXiv 2404.04656",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Sides("text", beta, BcoPair()),
    )
