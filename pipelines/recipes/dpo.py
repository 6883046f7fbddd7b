"""DPO: direct preference optimisation."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """-log sigmoid(beta (rho_w - rho_l)), rho = log pi - log pi_ref summed over the answer, nats.

    DPO, arXiv 2305.18290, equation 7 (from memory; TRL's code read: `sigmoid`). `pairs`: "online" compares
    the best and the worst of `samples` fresh answers, "recorded" takes the columns `chosen` and `rejected` of
    the data.
    """
    return one_stage(
        "dpo",
        paper="Direct Preference Optimization, arXiv 2305.18290",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta),
    )
