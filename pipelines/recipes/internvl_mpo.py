"""InternVL's MPO: preference, quality and generation losses in one."""

from __future__ import annotations

from typing import Any

from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.unpaired import Bco
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.continuing import Continue
from pipelines.programs.damaging import Blind
from pipelines.programs.mixing import When
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 8,
    beta: float = 0.1,
    preference: float = 0.8,
    quality: float = 0.2,
    generation: float = 1.0,
    keep: float = 0.5,
    column: str = "kind",
    verifiable: tuple[Any, ...] = ("random", "popular", "adversarial"),
) -> Recipe:
    """0.8 DPO + 0.2 BCO + 1.0 NLL of the chosen answer.

    MPO of InternVL, arXiv 2411.10442 (code read). BCO per pair: -log sigmoid(r_w - delta) - log sigmoid(delta
    - r_l), delta the running mean of r = beta rho over earlier steps (the code counts the batch at
    hand as well; the term averages over answers, hence the factor 2).

    Rows whose `column` holds one of `verifiable` compare a right with a wrong sample by the run's reward. For
    all others DropoutNTP: the rejected answer keeps the first `keep` of the policy's own answer and goes on
    without the picture; it is scored under the full prompt. beta inferred.
    """
    dropout = (
        Sample(1, "w", judged=False)
        >> Blind("blind")
        >> Continue("l", of="w", under="blind", low=keep, high=keep)
    )
    return one_stage(
        "internvl_mpo",
        paper="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference "
        "Optimization, arXiv 2411.10442",
        source="code read; beta inferred",
        rollout=When(column, verifiable, best_and_worst(samples), dropout),
        objective=preference * Pair("text", beta)
        + 2 * quality * Bco("text.winner", "text.loser", beta)
        + generation * Nll("text.winner", "batch_tokens"),
    )
