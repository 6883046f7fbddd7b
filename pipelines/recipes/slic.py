"""SLiC: sequence likelihood calibration."""

from __future__ import annotations

from pipelines.objectives.links import Hinge
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
    delta: float = 1.0,
    nll: float = 0.1,
) -> Recipe:
    """relu(delta - log pi(w) + log pi(l)) - nll log pi(w), without a reference.

    SLiC-HF, arXiv 2305.10425 (HALOs' code read). The hinge is on log-probabilities themselves; it is written
    here as delta * relu(1 - (log pi(w) - log pi(l)) / delta). `nll` weighs the likelihood of the chosen
    answer, summed.
    """
    if not delta > 0:
        raise ValueError(f"slic: delta must be positive, got {delta:g}")
    return one_stage(
        "slic",
        paper="SLiC-HF, arXiv 2305.10425",
        source="HALOs' code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=delta * Pair("text", 1.0 / delta, Hinge(), Sum(against=None))
        + nll * Nll("text.winner", "sum"),
        reference=NoReference(),
    )
