"""RPO: DPO regularised by the likelihood of the chosen answer."""

from __future__ import annotations

from pipelines.objectives.nll import Nll, Reduction
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    eta: float = 0.005,
    reduction: Reduction = "sum",
) -> Recipe:
    """-log sigmoid(h) - eta beta log pi(w), h = beta (rho_w - rho_l).

    RPO (regularised preference optimisation), arXiv 2405.16436 (code read): the adversarial reward argument
    gives the likelihood term. `reduction`: "sum" is the released cumulative form (eta 0.005; better for
    chat), "sequence_mean" the averaged one (eta 0.2; better for reasoning), "batch_tokens" TRL's; with a
    mean, eta is not multiplied by beta.
    """
    return one_stage(
        "rpo_sft",
        paper="Provably Mitigating Overoptimization in RLHF, arXiv 2405.16436",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta)
        + (eta * beta if reduction == "sum" else eta) * Nll("text.winner", reduction),
    )
