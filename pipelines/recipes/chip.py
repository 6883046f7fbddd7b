"""CHiP: preferences at the levels of media, answer, segment and token."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.objectives.kl import LoserKl
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Spans
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.damaging import Damage
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import TEXT_AND_MEDIA
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.5,
    lam: float = 3.0,
    gamma: float = 0.1,
    span_weight: float = 4.0,
    step: int = 500,
) -> Recipe:
    """Text pair + media pair + lambda * segment pair + gamma * (KL_l - sg KL_w): the paper's form.

    CHiP, arXiv 2501.16629 (third-party note; the released code, which differs, is `chip_released`). The
    segment term scores an answer by its log-ratios, `span_weight` more where the two answers differ, over |y|
    + `span_weight` |y_differing|. KL is sum_t KL(pi_ref || pi) over an answer, nats. The media twin is the
    whole picture at diffusion `step` in normalised space. lambda is 3 for LLaVA and 1 for Muffin.

    The sign of the token term: as transcribed, the paper adds gamma (sg KL_w - KL_l), whose minimum raises
    the loser's KL without bound; the released code and TDPO, which it builds on, penalise it. Here a positive
    `gamma` penalises, and a negative one is the paper as printed. Inferred: that choice and `span_weight`.
    """
    objective = (
        Pair("text", beta)
        + Pair("media", beta)
        + lam * Pair("text", beta, scoring=Spans("segment", 1 + span_weight, normalised=True))
        + gamma * LoserKl("text")
    )
    return one_stage(
        "chip",
        paper="CHiP: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs, "
        "arXiv 2501.16629",
        source="third-party note and code read; sign of the token term as released, span weight inferred",
        rollout=pairs_from(pairs, samples, min_gap) >> Damage("m", Diffuse(step, "normalised")),
        compare=TEXT_AND_MEDIA | DiffSpans("segment"),
        objective=objective,
    )
