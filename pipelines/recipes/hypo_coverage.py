"""HyPO (coverage): offline pairs, online KL."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.kl import ScoreKl
from pipelines.objectives.pair import Pair
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "recorded",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    kl: float = 0.1,
    kl_samples: int = 2,
) -> Recipe:
    """DPO on pairs + kl * E_{y ~ pi}[sg(rho(y) - baseline) log pi(y)], the gradient of KL(pi || ref).

    HyPO, arXiv 2406.01462 (third-party note; the form of the KL estimate is from memory). The fresh samples
    carry no label; their baseline is the mean of the others (RLOO). Inferred: the weight
    `kl` and `kl_samples`. Not to be confused with `hypo_gating`.
    """
    return one_stage(
        "hypo_coverage",
        paper="The Importance of Online Data: Understanding Preference Fine-tuning via Coverage, "
        "arXiv 2406.01462",
        source="third-party note; KL estimator from memory",
        rollout=pairs_from(pairs, samples, min_gap) >> Sample(kl_samples, "k", judged=False),
        compare=TEXT | Cells({"kl": "k@x"}),
        objective=Pair("text", beta) + kl * ScoreKl("kl"),
        experimental=True,
    )
