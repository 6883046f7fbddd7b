"""Robust DPO: an unbiased loss under flipped labels."""

from __future__ import annotations

from pipelines.objectives.links import Robust
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    flip: float = 0.1,
) -> Recipe:
    """[-(1 - e) log sigmoid(h) + e log sigmoid(-h)] / (1 - 2 e), h = beta (rho_w - rho_l).

    Robust DPO ("rDPO" in its paper), arXiv 2403.00409 (TRL's code read: `robust`; ordering of results from
    memory). In expectation over labels flipped with rate e it equals DPO on clean labels. It is unbounded
    below, so keep runs short. Not to be confused with Re-Align's rDPO (`realign_rdpo`) nor with rationales.
    """
    return one_stage(
        "robust_dpo",
        paper="Provably Robust DPO, arXiv 2403.00409",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, Robust(flip)),
    )
