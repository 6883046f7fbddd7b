"""IPO on summed log-ratios."""

from __future__ import annotations

from pipelines.objectives.links import Square
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """(rho_w - rho_l - 1 / (2 beta))^2.

    IPO, arXiv 2310.12036, in the form of the paper and of TRL's online trainers (code read), without the
    token mean of `ipo`.
    """
    return one_stage(
        "ipo_sum",
        paper="A General Theoretical Paradigm to Understand Learning from Human Preferences (IPO), "
        "arXiv 2310.12036",
        source="TRL's code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, Square()),
    )
