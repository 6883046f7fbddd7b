"""Nash-MD: policy gradient against a mixture of policy and reference."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.decoding import Mixture
from pipelines.objectives.policy_gradient import Nash
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, beta: float = 0.1, reference_share: float = 0.5) -> Recipe:
    """-(P - 1/2) log pi(y) + beta sum_t sg(log pi_t - log ref_t) log pi_t, P = sigmoid(r(y) - r(opponent)).

    Nash-MD, arXiv 2312.00886 (TRL's code read). The opponent is sampled per token from logits
    c * reference + (1 - c) * policy. Needs samples of the newest weights.
    """
    opponent = Sample(1, "o", decoder=Mixture(reference_share=reference_share))
    return one_stage(
        "nash_md",
        paper="Nash Learning from Human Feedback, arXiv 2312.00886",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=Sample(1, "y") >> opponent,
        compare=Edges({"duel": ("y@x", "o@x")}),
        objective=Nash("duel", beta),
    )
