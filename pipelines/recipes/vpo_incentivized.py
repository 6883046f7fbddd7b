"""VPO: value-incentivised preference optimisation."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Cells
from pipelines.decoding import FromReference
from pipelines.objectives.kl import Bonus
from pipelines.objectives.pair import Pair
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from


def recipe(
    *,
    attitude: Literal["optimism", "pessimism"] = "optimism",
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    alpha: float = 1e-4,
) -> Recipe:
    """-log sigmoid(h) +- alpha beta rho(y): + for answers of the reference (optimism), - for the chosen ones.

    VPO, arXiv 2405.19320 (third-party note; derivation inferred). Offline pessimism with the chosen answers
    is RPO up to the reference; online optimism with the reference's answers is XPO with its alpha = alpha
    beta. The default of `alpha` is inferred. Not to be confused with V-usable VPO.
    """
    program = pairs_from(pairs, samples, min_gap)
    if attitude == "optimism":
        program = program >> Sample(1, "r", decoder=FromReference(), judged=False)
    calibration = Cells({"calibration": "r@x" if attitude == "optimism" else "w@x"})
    sign = 1.0 if attitude == "optimism" else -1.0
    return one_stage(
        "vpo_incentivized",
        paper="Value-Incentivized Preference Optimization, arXiv 2405.19320",
        source="third-party note; derivation inferred",
        rollout=program,
        compare=TEXT | calibration,
        objective=Pair("text", beta) + sign * alpha * beta * Bonus("calibration", against="reference"),
        experimental=True,
    )
