"""Implicit-reward SFT: supervised tuning under an f-divergence."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Cells
from pipelines.objectives.implicit import FSft
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Gold
from pipelines.recipe import Recipe, ResetOptimizer, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.recipes._text import TEXT


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    divergence: Literal["kl", "pearson", "hellinger"] = "pearson",
    lora: bool = False,
) -> Recipe:
    """psi_f(beta rho) of the gold answer, then DPO against the model that this gives.

    The implicit reward bridge between SFT and DPO, arXiv 2507.00018 (abstract read; the f-divergence forms
    are inferred): SFT matches distributions with a KL term that is constant and so does not constrain;
    another divergence keeps it. Advice of the authors, from memory: an SFT learning rate about ten times
    smaller. No other KL penalty is added here. `lora`: the run trains an adapter, merged between the stages.
    """
    return Recipe(
        name="implicit_sft",
        paper="Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections, arXiv 2507.00018",
        source="abstract read; forms inferred",
        experimental=True,
        stages=(
            Stage(
                rollout=Gold("g"),
                compare=Cells({"g": "g@x"}),
                objective=1.0 * FSft("g", divergence, beta),
                then=(*renewed(lora), ResetOptimizer()),
            ),
            Stage(rollout=best_and_worst(samples, min_gap), compare=TEXT, objective=1.0 * Pair("text", beta)),
        ),
    )
