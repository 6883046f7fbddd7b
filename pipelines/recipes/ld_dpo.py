"""LD-DPO: length-desensitised DPO."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Desensitised
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Recipe:
    """DPO on l = l[1:m] + alpha l[m+1:], m = min(|w|, |l|), for policy and reference.

    LD-DPO, arXiv 2409.06411 (TRL's code read: `ld_alpha`). alpha = 1 is DPO; pairs of equal length do not
    depend on it.
    """
    return one_stage(
        "ld_dpo",
        paper="Length Desensitization in DPO, arXiv 2409.06411",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Desensitised(alpha)),
    )
