"""NCA: noise contrastive alignment."""

from __future__ import annotations

from pipelines.objectives.sides import Nca, Sides
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """-log sigmoid(a) - 1/2 log sigmoid(-a) - 1/2 log sigmoid(-b), a = beta rho_w, b = beta rho_l.

    NCA for pairs, arXiv 2402.05369 (TRL's code read: `nca_pair`).
    """
    return one_stage(
        "nca",
        paper="Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv 2402.05369",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Sides("text", beta, Nca()),
    )
