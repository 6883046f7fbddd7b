"""Preference alignment as a remedy for regression: best against worst by several rated aspects."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Choose, NeedsParts
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *, samples: int = 4, min_gap: float = 0.0, beta: float = 0.1, aspects: tuple[str, ...] = ()
) -> Recipe:
    """DPO on the best and the worst answer by the sum of aspect ratings.

    "Multi-modal preference alignment remedies regression of visual instruction tuning", arXiv 2402.10884
    (code and abstract read): Gemini rates helpfulness, correctness, coherence, complexity and verbosity; beta
    0.1, learning rate 5e-5, LoRA 128. The run's reward rates here (a judge read by
    `rewards.generative.ReadAspects` gives parts and their sum); `aspects` are parts that it must give, and
    a score without one of them ends the run with an error. By default none is asked for.
    """
    return one_stage(
        "remedy_regression",
        paper="Multi-modal preference alignment remedies regression of visual instruction tuning on language "
        "model, arXiv 2402.10884",
        source="code and abstract read",
        rollout=Sample(samples) >> NeedsParts(aspects) >> Choose(min_gap),
        objective=Pair("text", beta),
    )
