"""HyPO (reference gating): pessimistic references are ignored."""

from __future__ import annotations

from pipelines.objectives.margins import ReferenceGate
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """-log sigmoid(beta (D - max(0, D_ref))), D = log pi(w) - log pi(l), D_ref the same of the reference.

    HyPO of arXiv 2602.11902 (formula from a third-party note). Where the reference prefers the rejected
    answer it is treated as neutral. Not to be confused with coverage HyPO (`hypo_coverage`, arXiv
    2406.01462).
    """
    return one_stage(
        "hypo_gating",
        paper="HyPO (reference gating), arXiv 2602.11902",
        source="third-party note; formula only",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Sum(against=None), margin=ReferenceGate(beta)),
        experimental=True,
    )
