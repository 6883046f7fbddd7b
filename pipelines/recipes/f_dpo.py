"""f-DPO: DPO under another divergence."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Divergence, FDivergence
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    divergence: Divergence = "js",
    alpha: float = 0.5,
) -> Recipe:
    """-log sigmoid(beta (s_w - s_l)) with scores s from an f-divergence of the ratio u = pi / pi_ref.

    f-DPO, arXiv 2309.16240 (TRL's code read): "reverse_kl" s = rho (DPO), "forward_kl" s = -exp(-rho), "js" s
    = log sigmoid(rho), "alpha" s = exp((a - 1) rho) / (a - 1).
    """
    return one_stage(
        "f_dpo",
        paper="Beyond Reverse KL, arXiv 2309.16240",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=FDivergence(divergence, alpha)),
    )
