"""TPO (tree): ranked lists of answers with lambda weights and step rewards."""

from __future__ import annotations

from pipelines.comparing.several import EveryPair
from pipelines.objectives.pair import Pair
from pipelines.objectives.weightings import LambdaGap
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 5, beta: float = 0.5, min_gap: float = 0.0) -> Recipe:
    """sum over v_i > v_j of lambda_ij -log sigmoid(beta (rho_i - rho_j)) over all pairs of the samples.

    Tree preference optimisation, arXiv 2410.12854 (third-party note and repository read; lambda from memory):
    lambda_ij = |2^v_i - 2^v_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|. The released loss rewards
    misranking and shifts no labels; it is not followed. The paper's list comes from a tree of reasoning steps
    with scores by a stronger model; here the answers are sampled and the run's reward scores them, and the
    adaptive weight of aligned steps is left out (its direction is from memory alone). Not to be confused with
    TRL's `tpo` (triples) or task preference optimisation (`task_po`).
    """
    return one_stage(
        "tpo_tree",
        paper="TPO: Aligning LLMs with Multi-branch and Multi-step Preference Trees, arXiv 2410.12854",
        source="third-party note; code read and not followed; lambda from memory",
        rollout=Sample(samples),
        compare=EveryPair(min_gap=min_gap),
        objective=Pair("text", beta, weighting=LambdaGap()),
        experimental=True,
    )
