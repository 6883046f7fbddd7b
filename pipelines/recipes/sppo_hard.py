"""SPPO with hard labels, on a pair."""

from __future__ import annotations

from pipelines.objectives.sides import Sides, SppoHard
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """(rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2.

    TRL's `sppo_hard` (code read). The method with win probabilities among the samples is `sppo`.
    """
    return one_stage(
        "sppo_hard",
        paper="Self-Play Preference Optimization, arXiv 2405.00675",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Sides("text", beta, SppoHard()),
    )
