"""MODPO: one objective by preferences, the others as a margin."""

from __future__ import annotations

from pipelines.objectives.margins import ScoreGap, Together
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import NeedsParts, best_and_worst
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    weight: float = 0.5,
    others: dict[str, float] | None = None,
) -> Recipe:
    """-log sigmoid((1 / w_1) [beta (rho_w - rho_l) - sum_k w_k (r_k(w) - r_k(l))]).

    MODPO, arXiv 2310.03708 (code read). `weight` is w_1 of the objective that orders the pairs (the score);
    `others` maps a part of the score to its weight (frozen margin rewards: another model's implicit reward,
    or minus the length). All weights sum to 1. Without others (w_1 = 1) it is DPO.
    """
    parts = others or {}
    if abs((weight if parts else 1.0) + sum(parts.values()) - 1) > 1e-6 or not 0 < weight <= 1:
        raise ValueError(f"modpo: weight and others must sum to 1, got {weight:g} and {parts}")
    first = weight if parts else 1.0
    program = best_and_worst(samples, min_gap)
    margins = tuple(ScoreGap(share / first, part) for part, share in parts.items())
    return one_stage(
        "modpo",
        paper="Beyond One-Preference-Fits-All Alignment: Multi-Objective DPO, arXiv 2310.03708",
        source="code read",
        rollout=program >> NeedsParts(tuple(parts)) if parts else program,
        objective=Pair("text", beta / first, margin=Together(margins) if parts else None),
    )
