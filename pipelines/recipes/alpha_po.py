"""AlphaPO: SimPO with a curved reward."""

from __future__ import annotations

from pipelines.objectives.margins import Constant
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Alpha
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 0.25,
) -> Recipe:
    """-log sigmoid(beta (r_w - r_l) - gamma), r = (1 - p^-alpha) / alpha, p = exp(log pi(y) / |y|).

    AlphaPO, arXiv 2501.03884 (TRL's code read). alpha -> 0 is SimPO. The default of `alpha` is from memory.
    """
    return one_stage(
        "alpha_po",
        paper="AlphaPO: Reward Shape Matters for LLM Alignment, arXiv 2501.03884",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Alpha(alpha), margin=Constant(gamma)),
        reference=NoReference(),
    )
