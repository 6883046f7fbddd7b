"""Factually Augmented RLHF: reinforcement against a reward that is told the facts."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 4, clip: float = 0.2, kl: float = 0.1) -> Recipe:
    """Clipped policy gradient with a leave-one-out baseline and KL 0.1.

    Factually Augmented RLHF of LLaVA-RLHF, arXiv 2309.14525 (code read). What is special is the reward: a
    model whose prompt holds captions or options, with bonuses and penalties, which
    `pipelines.rewards.rules.factually_augmented` and `pipelines.rewards.prompts.Augmented` build; set it as
    the run's. There PPO with a value network, KL 0.1 inside the reward (here a term of the loss), learning
    rate 3e-5, LoRA; here `samples` answers of a prompt give the baseline instead (ours), so there is no value
    network.
    """
    return one_stage(
        "fact_rlhf",
        paper="Aligning Large Multimodal Models with Factually Augmented RLHF, arXiv 2309.14525",
        source="code read. The group baseline in place of a value network is ours",
        rollout=Sample(samples),
        compare=Cells({"y": "y@x"}),
        objective=PolicyGradient("y", "rloo", clip, kl=kl),
    )
