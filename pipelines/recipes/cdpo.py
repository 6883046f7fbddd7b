"""cDPO: DPO under symmetric label noise."""

from __future__ import annotations

from pipelines.objectives.links import LogSigmoid
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    smoothing: float = 0.1,
) -> Recipe:
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h), h = beta (rho_w - rho_l).

    Conservative DPO, a note by Eric Mitchell (HALOs' code read); equal to DPO + e h, with its minimum at
    sigmoid(h) = 1 - e. `smoothing` is e, the share of labels that are believed to be flipped.
    """
    return one_stage(
        "cdpo",
        paper="Conservative DPO (note by E. Mitchell, 2023), on DPO, arXiv 2305.18290",
        source="HALOs' code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, LogSigmoid(smoothing)),
    )
