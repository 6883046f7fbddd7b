"""XPO: exploration by optimism about the reference's answers."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.decoding import FromReference
from pipelines.objectives.kl import Bonus
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Choose
from pipelines.programs.sampling import Pool, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, one_stage


def recipe(*, beta: float = 0.1, alpha: float = 1e-5, min_gap: float = 0.0) -> Recipe:
    """DPO between one answer of the policy and one of the reference, + alpha log pi(reference's answer).

    XPO, arXiv 2405.21046 (TRL's code read). The reward decides which of the two wins; ties drop the group
    (TRL counts them for the policy). Lowering the likelihood of what the reference would say makes the policy
    explore.
    """
    program = Sample(1, "y") >> Sample(1, "r", decoder=FromReference()) >> Pool("both", ("y", "r"))
    return one_stage(
        "xpo",
        paper="Exploratory Preference Optimization, arXiv 2405.21046",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=program >> Choose(min_gap, of="both"),
        compare=TEXT | Cells({"r": "r@x"}),
        objective=Pair("text", beta) + alpha * Bonus("r"),
    )
