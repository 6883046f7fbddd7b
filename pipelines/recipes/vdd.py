"""VDD: the decoder without the language prior teaches the plain one."""

from __future__ import annotations

from pipelines.decoding import Contrast
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Unlike
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, beta: float = 0.1, alpha: float = 1.0, cutoff: float = 0.1) -> Recipe:
    """DPO of a VDD decode against a plain decode; no labels.

    VDD of Debiasing Multimodal LLMs, arXiv 2403.05262 (code read), is a decoder without training: logits (1 +
    alpha) l - alpha l_blind among tokens with p >= `cutoff` * max p. It is `decoding.Contrast`; its affine
    calibration of answer classes is left out. That pairs of it train a policy is ours. Needs an engine that
    contrasts logits (Hugging Face).
    """
    contrast = Sample(1, "w", decoder=Contrast(alpha=alpha, cutoff=cutoff), judged=False)
    return one_stage(
        "vdd",
        paper="Debiasing Multimodal Large Language Models, arXiv 2403.05262",
        source="decoding: code read; training on its pairs is ours",
        rollout=contrast >> Sample(1, "l", judged=False) >> Unlike(),
        objective=Pair("text", beta),
    )
