"""WPO: pairs weighted by how likely the policy is to write them."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.objectives.weightings import Wpo
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """DPO times omega_w omega_l, omega = exp(mean_t[log pi(y_t) - log sum_v pi(v)^2]).

    WPO, arXiv 2406.11827 (TRL's code read: `use_weighting`). The factors carry no gradient.
    """
    return one_stage(
        "wpo",
        paper="WPO, arXiv 2406.11827",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, weighting=Wpo()),
    )
