"""Flex-DPO: another beta for the rejected answer."""

from __future__ import annotations

from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import TwoBetas
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    beta_rejected: float = 0.05,
    nll: float = 0.0,
) -> Recipe:
    """-log sigmoid(beta rho_w - beta_rejected rho_l), with an optional likelihood term.

    3D-properties of DPO, arXiv 2406.07327 (third-party note). A smaller `beta_rejected` slows the fall of the
    rejected answer; 0 leaves it without a gradient. `nll` adds the likelihood of the chosen answer.
    """
    return one_stage(
        "flex_dpo",
        paper="3D-Properties: Identifying Challenges in DPO and Charting a Path Forward, arXiv 2406.07327",
        source="third-party note",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=TwoBetas("text", beta, beta_rejected) + nll * Nll("text.winner", "sequence_mean"),
        experimental=True,
    )
