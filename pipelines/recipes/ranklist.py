"""RankList: listwise ranking with local and skipped pairs."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.ranking import PlackettLuce, Skip
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *, samples: int = 4, beta: float = 0.1, skip: int = 2, skip_weight: float = 0.5, min_gap: float = 0.0
) -> Recipe:
    """sum_i log(1 + sum_{j > i} exp(s_j - s_i)) over ranked samples, s = beta rho, plus pairs `skip` apart.

    RankList, arXiv 2508.09826 (abstract read; the formula is inferred: Plackett-Luce for the list, RankNet on
    pairs that lie `skip` places apart). `min_gap` filters pairs whose rewards are closer. The paper trains a
    score head; here the policy's own log-ratio is the score, and a reward model takes the same
    loss in `actors.reward_model.RewardModel.fit_ranking`.
    """
    return one_stage(
        "ranklist",
        paper="RankList: A Listwise Preference Learning Framework for Predicting Subjective Preferences, "
        "arXiv 2508.09826",
        source="abstract read; formula inferred",
        rollout=Sample(samples),
        compare=Cells({"y": "y@x"}),
        objective=PlackettLuce("y", beta) + skip_weight * Skip("y", beta=beta, k=skip, min_gap=min_gap),
        experimental=True,
    )
