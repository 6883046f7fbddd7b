"""Hinge: SLiC's link on DPO's margin."""

from __future__ import annotations

from pipelines.objectives.links import Hinge
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
) -> Recipe:
    """relu(1 - beta (rho_w - rho_l)).

    SLiC-HF, arXiv 2305.10425, as TRL writes it (`hinge`, code read): with a reference and without the
    likelihood term. See `slic` for the calibration loss itself.
    """
    return one_stage(
        "hinge_dpo",
        paper="SLiC-HF, arXiv 2305.10425",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, Hinge()),
    )
