"""M3ID + DPO: the decoder that leans on the picture teaches the one that does not."""

from __future__ import annotations

from typing import Literal

from pipelines.decoding import Grounded
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Unlike
from pipelines.programs.damaging import Blind
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    beta: float = 0.1,
    alpha: float = 0.3,
    decay: float = 0.02,
    loser: Literal["plain", "blind"] = "plain",
) -> Recipe:
    """DPO of an M3ID decode against an ordinary decode (or one without the picture); no labels.

    M3ID, arXiv 2403.14003 (decoding: third-party note; its DPO: inferred). While the likeliest token has
    p < `alpha` the logits are l + ((1 - g) / g) (l - l_blind), g = exp(-`decay` t). Needs an engine that
    contrasts logits (Hugging Face).
    """
    plain = Sample(1, "l", judged=False)
    blind = Blind("blind") >> Sample(1, "l", under="blind", judged=False)
    grounded = Sample(1, "w", decoder=Grounded(alpha=alpha, decay=decay), judged=False)
    return one_stage(
        "m3id_dpo",
        paper="Multi-Modal Hallucination Control by Visual Information Grounding, arXiv 2403.14003",
        source="decoding from a third-party note; the DPO step inferred",
        rollout=grounded >> (blind if loser == "blind" else plain) >> Unlike(),
        objective=Pair("text", beta),
        experimental=True,
    )
