"""UnifiedReward-Think: distil, keep what is right, then reinforce where it still fails."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.policy_gradient import PolicyGradient
from pipelines.programs.choosing import Kept
from pipelines.programs.given import Recorded
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed


def recipe(
    *,
    samples: int = 8,
    correct: float = 1.0,
    kl: float = 0.04,
    thoughts: str = "answer",
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0),
    lora: bool = False,
) -> Recipe:
    """NLL on distilled thoughts, NLL on own right answers, GRPO where not all answers are right.

    UnifiedReward-Think, arXiv 2505.03318 (code read): 5k distilled traces (column `thoughts`),
    rejection-sampling fine-tuning on answers with a reward of at least `correct`, then GRPO on the failures
    with n = 8, KL 0.04 and a reward of exact match and format (the run's). A group with some right answers
    counts as a failure; one without any is dropped, since all its answers are equally wrong
    (ours).
    """
    sampled = Sample(samples)
    return Recipe(
        name="unified_reward_think",
        paper="Unified Multimodal Chain-of-Thought Reward Model through Reinforcement Fine-Tuning, "
        "arXiv 2505.03318",
        source="code read",
        stages=(
            Stage(
                rollout=Recorded("g", thoughts),
                compare=Cells({"distilled": "g@x"}),
                objective=1.0 * Nll("distilled"),
                share=shares[0],
            ),
            Stage(
                rollout=sampled >> Kept(correct),
                compare=Cells({"kept": "kept@x"}),
                objective=1.0 * Nll("kept"),
                share=shares[1],
                then=renewed(lora),
            ),
            Stage(
                rollout=sampled >> Kept(correct, some_below=True),
                compare=Cells({"y": "y@x"}),
                objective=1.0 * PolicyGradient("y", kl=kl),
                share=shares[2],
            ),
        ),
    )
