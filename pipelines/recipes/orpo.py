"""ORPO: odds ratio preference optimisation."""

from __future__ import annotations

from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import LogOdds
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """NLL(w) - beta log sigmoid(log odds(w) - log odds(l)), odds of the mean token probability.

    ORPO, arXiv 2403.07691 (TRL's code read). log odds = m - log(1 - exp(m)), m the mean log-probability per
    token. TRL's likelihood term covers the prompt as well; here it covers the answer (the prompt holds
    images).
    """
    return one_stage(
        "orpo",
        paper="ORPO, arXiv 2403.07691",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=beta * Pair("text", 1.0, scoring=LogOdds()) + Nll("text.winner", "batch_tokens"),
        reference=NoReference(),
    )
