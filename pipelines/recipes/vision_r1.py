"""Vision-R1: group-relative reinforcement with rewards that grow stricter."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.programs.choosing import NeedsParts
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 4, clip: float = 0.2, kl: float = 0.04, parts: tuple[str, ...] = ()) -> Recipe:
    """GRPO with n = 4 on format, recall and precision of boxes, whose thresholds tighten during the run.

    Vision-R1, arXiv 2503.18013 (code read). The reward is the run's: `pipelines.rewards.boxes:vision_r1` has
    the three parts and the switch at step 1,500. `parts` are those that a score must have; a score without
    one of them ends the run with an error. By default none is asked for. KL and clip inferred.
    """
    return one_stage(
        "vision_r1",
        paper="Vision-R1: Evolving Human-Free Alignment in Large Vision-Language Models via Vision-Guided "
        "Reinforcement Learning, arXiv 2503.18013",
        source="code read; KL and clip inferred",
        rollout=Sample(samples) >> NeedsParts(parts),
        compare=Cells({"y": "y@x"}),
        objective=PolicyGradient("y", clip=clip, kl=kl),
    )
