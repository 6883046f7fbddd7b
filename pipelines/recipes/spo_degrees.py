"""SPO (self-supervised): a head that tells how much was deleted from an answer."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.heads import Degree
from pipelines.objectives.pair import Pair
from pipelines.perturbations.text import degrees
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.editing import Graded
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, one_stage


def recipe(
    *, samples: int = 8, min_gap: float = 0.0, beta: float = 0.1, gamma: float = 0.1, classes: int = 3
) -> Recipe:
    """DPO + gamma * cross entropy of a head that predicts which share of the key content was deleted.

    Self-supervised preference degree (abstract read; mechanism from memory): increasing shares of key content
    are deleted from the chosen answer, which gives `classes` degrees for nothing. `gamma` and `classes` are
    inferred. Not to be confused with step-aware SPO or SPPO.
    """
    names = tuple(f"degree/{k}" for k in range(classes))
    return one_stage(
        "spo_degrees",
        paper="Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree "
        "Awareness, arXiv 2409.17791",
        source="abstract read; mechanism from memory",
        rollout=best_and_worst(samples, min_gap) >> Graded("degree", "w", degrees(classes)),
        compare=TEXT | Cells({name: f"{name}@x" for name in names}),
        objective=Pair("text", beta) + gamma * Degree(names),
        experimental=True,
    )
