"""CPO: contrastive preference optimisation."""

from __future__ import annotations

from pipelines.objectives.links import LogSigmoid
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    nll: float = 1.0,
    smoothing: float = 0.0,
) -> Recipe:
    """-log sigmoid(beta (log pi(w) - log pi(l))) - nll log pi(w), without a reference.

    CPO, arXiv 2401.08417 (TRL's code read). The likelihood term is the mean over all chosen tokens of the
    batch, so that long answers weigh more. `smoothing` as in cDPO.
    """
    return one_stage(
        "cpo",
        paper="Contrastive Preference Optimization, arXiv 2401.08417",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, LogSigmoid(smoothing), Sum(against=None))
        + nll * Nll("text.winner", "batch_tokens"),
        reference=NoReference(),
    )
