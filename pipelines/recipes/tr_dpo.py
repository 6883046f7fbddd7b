"""TR-DPO: a reference that follows the policy."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import Blended


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    alpha: float = 0.6,
    every: int = 16,
) -> Recipe:
    """DPO; every `every` steps reference <- (1 - alpha) reference + alpha policy.

    TR-DPO, arXiv 2404.09656 (TRL's code read). TRL's defaults are alpha = 0.6 and 512 steps; `every` is
    shorter here because runs are. alpha = 1 is the hard update.
    """
    return one_stage(
        "tr_dpo",
        paper="Learn Your Reference Model for Real Good Alignment, arXiv 2404.09656",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta),
        reference=Blended(alpha=alpha, every=every),
    )
