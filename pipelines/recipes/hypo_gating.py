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

    HyPO (hybrid DPO), arXiv 2602.11902 (abstract read, which has the formula). A reference that prefers the
    rejected answer has no say; any other counts as in DPO. Not to be confused with coverage HyPO
    (`hypo_coverage`, arXiv 2406.01462).
    """
    return one_stage(
        "hypo_gating",
        paper="Mitigating Mismatch within Reference-based Preference Optimization (HyPO), arXiv 2602.11902",
        source="abstract read; defaults inferred",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Sum(against=None), margin=ReferenceGate(beta)),
        experimental=True,
    )
