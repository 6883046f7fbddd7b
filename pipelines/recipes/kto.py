"""KTO: good and bad answers without pairs."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.unpaired import Kto
from pipelines.programs.choosing import Label
from pipelines.programs.optional import Maybe
from pipelines.programs.sampling import Foreign, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 4,
    beta: float = 0.1,
    threshold: float | None = None,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Recipe:
    """lambda (1 - sigmoid(+-beta (rho - z))) for good (+) and bad (-) answers, lambda each their own.

    KTO, arXiv 2402.01306 (TRL's code read). z >= 0 is the mean rho of answers to *other* prompts over the
    global batch, without gradient; TRL rotates the micro-batch, here the mismatched answer is one that was
    sampled lately. An answer is good when its score is at least `threshold` (None: the mean of its group).
    """
    return one_stage(
        "kto",
        paper="KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=Sample(samples) >> Label(threshold) >> Maybe(Foreign("f")),
        compare=Cells({"good": "good@x", "bad": "bad@x", "kl": "f@x"}, optional=frozenset({"kl"})),
        objective=Kto("good", "bad", "kl", beta, desirable, undesirable),
    )
