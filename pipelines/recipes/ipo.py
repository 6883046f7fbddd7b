"""IPO: a squared loss on the margin per token."""

from __future__ import annotations

from pipelines.objectives.links import Square
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Mean
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """(s_w / |w| - s_l / |l| - 1 / (2 beta))^2, s = rho.

    IPO, arXiv 2310.12036 (TRL's code read: `ipo`, which averages over tokens). See `ipo_sum` for the form on
    sums, which equals this one only for answers of one token.
    """
    return one_stage(
        "ipo",
        paper="A General Theoretical Paradigm to Understand Learning from Human Preferences (IPO), "
        "arXiv 2310.12036",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, Square(), Mean()),
    )
