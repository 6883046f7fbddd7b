"""BCO: a classifier between good and bad answers with a running shift."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.unpaired import Bco
from pipelines.programs.choosing import Label
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *, samples: int = 4, beta: float = 0.1, threshold: float | None = None, current: bool = True
) -> Recipe:
    """-log sigmoid(beta rho - delta) for good, -log sigmoid(-(beta rho - delta)) for bad answers.

    BCO, arXiv 2404.04656 (TRL's code read). delta is the running mean of beta rho over all answers seen;
    `current` includes the batch at hand, as TRL does, which couples the global batch.
    """
    return one_stage(
        "bco",
        paper="Binary Classifier Optimization for LLM Alignment, arXiv 2404.04656",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=Sample(samples) >> Label(threshold),
        compare=Cells({"good": "good@x", "bad": "bad@x"}),
        objective=Bco("good", "bad", beta, current),
    )
