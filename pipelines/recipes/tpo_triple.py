"""TPO (triple): reference-free pairs and the likelihood of a gold answer."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.programs.given import Gold
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *, pairs: Pairs = "online", samples: int = 8, min_gap: float = 0.0, beta: float = 0.1, alpha: float = 1.0
) -> Recipe:
    """-log sigmoid(beta (log pi(w) - log pi(l))) - alpha log pi(gold) per token.

    Triple preference optimisation, arXiv 2405.16681, as in TRL (`tpo`, code read). The gold answer is the
    row's `answer`. Not to be confused with tree (`tpo_tree`) or task (`task_po`) preference optimisation.
    """
    return one_stage(
        "tpo_triple",
        paper="Triple Preference Optimization, arXiv 2405.16681",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap) >> Gold("g"),
        compare=TEXT | Cells({"g": "g@x"}),
        objective=Pair("text", beta, scoring=Sum(against=None)) + alpha * Nll("g", "batch_tokens"),
        reference=NoReference(),
    )
