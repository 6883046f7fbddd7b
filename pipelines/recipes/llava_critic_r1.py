"""LLaVA-Critic-R1: judging pairs as a verifiable choice, by reinforcement."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.judging import VERDICT, AskVerdict
from pipelines.programs.sampling import JudgedBy, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.rewards.aggregate import WeightedSum
from pipelines.rewards.rules import ExactMatch, Format


def recipe(
    *,
    samples: int = 4,
    verdicts: int = 8,
    kl: float = 0.01,
    template: str = VERDICT,
    right: str = "yes",
    wrong: str = "no",
    form: str = r"(yes|no)[ .]*",
) -> Recipe:
    """GRPO on verdicts about two answers, reward 0.9 * right verdict + 0.1 * its form.

    LLaVA-Critic-R1, arXiv 2509.00676 (code read): n = 8, KL 0.01, learning rate 1e-6 on recorded critic data.
    Here the two answers are the best and the worst of `samples` of the policy by the run's reward, asked
    about in random order; `right` is the verdict that the first is better, and `form` a regular expression.
    """
    reward = WeightedSum(
        {"accuracy": ExactMatch("verdict"), "format": Format(form)}, {"accuracy": 0.9, "format": 0.1}
    )
    program = (
        best_and_worst(samples)
        >> AskVerdict("judge", template=template, right=right, wrong=wrong)
        >> Sample(verdicts, "v", under="judge", judged=False)
        >> JudgedBy("v", reward)
    )
    return one_stage(
        "llava_critic_r1",
        paper="LLaVA-Critic-R1: Your Critic Model is Secretly a Strong Policy Model, arXiv 2509.00676",
        source="code read. Pairs of the policy's own answers are ours",
        rollout=program,
        compare=Cells({"verdict": "v@judge"}),
        objective=PolicyGradient("verdict", kl=kl),
    )
