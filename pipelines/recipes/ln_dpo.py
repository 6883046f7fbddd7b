"""LN-DPO: length-normalised DPO."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Mean
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 2.0,
) -> Recipe:
    """-log sigmoid(beta (rho_w / |w| - rho_l / |l|)).

    TRL's `sigmoid_norm` (code read); that it comes from Tulu 3 is from memory. With a constant reference it
    is SimPO without a margin. beta is per token, hence larger than DPO's; its default is inferred.
    """
    return one_stage(
        "ln_dpo",
        paper="Tulu 3 (length-normalised DPO), arXiv 2411.15124",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Mean()),
    )
