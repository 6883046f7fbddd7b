"""HARMO: group-relative reinforcement on a hybrid of rules, a model, format and length."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 8, clip: float = 0.2, kl: float = 0.04) -> Recipe:
    """Clipped policy gradient with the advantage R - mean R of the group (no division by its deviation).

    HARMO, "Beyond Monolithic Rewards", arXiv 2510.05283 (abstract and third-party note read). The reward is
    the run's: `pipelines.rewards.groups.harmo` takes the rule where the prompt can be verified and the model
    elsewhere, and adds format and a length penalty. Inferred: clip and KL.
    """
    return one_stage(
        "harmo",
        paper="Beyond Monolithic Rewards: A Hybrid and Multi-Aspect Reward Optimization for MLLM Alignment, "
        "arXiv 2510.05283",
        source="abstract and third-party note; clip and KL inferred",
        rollout=Sample(samples),
        compare=Cells({"y": "y@x"}),
        objective=PolicyGradient("y", "centered", clip, kl=kl),
        experimental=True,
    )
