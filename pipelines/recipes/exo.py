"""EXO: exact optimisation by reverse KL."""

from __future__ import annotations

from pipelines.objectives.links import Exo
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    epsilon: float = 1e-3,
) -> Recipe:
    """sigmoid(h) [log sigmoid(h) - log(1 - e)] + sigmoid(-h) [log sigmoid(-h) - log e].

    EXO, arXiv 2402.00856 (TRL's code read: `exo_pair`). 0 at h = logit(1 - e), positive elsewhere; `epsilon`
    must be positive.
    """
    return one_stage(
        "exo",
        paper="Towards Efficient Exact Optimization of Language Model Alignment, arXiv 2402.00856",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, Exo(epsilon)),
    )
