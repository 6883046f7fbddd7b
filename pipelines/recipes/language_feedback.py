"""Learning from language feedback: the refined answer is preferred to the original."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Gated
from pipelines.programs.editing import Edited
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.rewards.gates import MinGap


def recipe(*, beta: float = 0.1, checked: bool = True, min_gap: float = 0.0) -> Recipe:
    """DPO on (refined answer, the policy's own).

    Align-Anything's learning from language feedback (scripts read): response, critique, refinement. Here the
    run's `editor` critiques and refines in one call (kind "refine"). `checked` keeps a pair only when the
    reward agrees that the refinement is better.
    """
    program = Sample(1, "y", judged=checked) >> Edited("r", "y", "refine", judged=checked)
    if checked:
        program = program >> Gated((MinGap(min_gap),), best="r", worst="y")
    return one_stage(
        "language_feedback",
        paper="Align Anything: Training All-Modality Models to Follow Instructions with Language Feedback, "
        "arXiv 2412.15838",
        source="code read; result from memory",
        rollout=program,
        compare=Edges({"text": ("r@x", "y@x")}),
        objective=Pair("text", beta),
    )
