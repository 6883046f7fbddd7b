"""MRPO: several references."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import Harmonic, Reference


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    others: tuple[str, ...] = (),
    share: float = 0.5,
    clip: float | None = 0.1,
) -> Recipe:
    """DPO against the weighted harmonic mean of several frozen models, clipped around the first.

    MRPO, arXiv 2405.16388 (code read). `others`: checkpoints with the vocabulary of the policy; `share` is
    the weight of the run's own model, the rest is split evenly. The released code for two models attaches
    each weight to the other model; here the formula is used. The paper's adaptive weights are left out.
    Without others it is DPO.
    """
    return one_stage(
        "mrpo",
        paper="Multi-Reference Preference Optimization, arXiv 2405.16388",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta),
        reference=_references(others, share, clip),
    )


def _references(others: tuple[str, ...], share: float, clip: float | None) -> Reference:
    if not others:
        return Reference()
    rest = ((1 - share) / len(others),) * len(others)
    return Harmonic(paths=others, shares=(share, *rest), clip=clip)
