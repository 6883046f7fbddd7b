"""DCD: a projector for good answers and one for bad ones, contrasted when decoding."""

from __future__ import annotations

from typing import Literal

from pipelines.objectives.nll import Nll
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._text import TEXT, Pairs, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    side: Literal["positive", "negative"] = "negative",
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    projector: str = r"merger|multi_modal_projector|mm_projector",
) -> Recipe:
    """NLL of the chosen (positive) or rejected (negative) answers, on the projector's weights alone.

    DCD, arXiv 2504.08809 (third-party note): no pair loss. Two runs train a positive and a negative image
    projector; `projector` is a regular expression over parameter names. Decoding takes (1 + a) l_positive - a
    l_negative, which is `decoding.Contrast(other=<the negative run's checkpoint>)` of the positive model, or
    of the untrained one (the negative-only variant).
    """
    return Recipe(
        name="dcd",
        paper="Decoupling Contrastive Decoding: Robust Hallucination Mitigation in Multimodal LLMs, "
        "arXiv 2504.08809",
        source="third-party note",
        experimental=True,
        stages=(
            Stage(
                rollout=pairs_from(pairs, samples, min_gap),
                compare=TEXT,
                objective=1.0 * Nll("text.winner" if side == "positive" else "text.loser"),
                reference=NoReference(),
                trainable=(projector,),
            ),
        ),
    )
