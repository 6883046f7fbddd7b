"""CHiP as released: one sigmoid around everything."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.objectives.margins import KLGap
from pipelines.objectives.pair import Linear
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
    beta: float = 0.1,
    gamma: float = 0.1,
    span_weight: float = 4.0,
    step: int = 500,
) -> Recipe:
    """-log sigmoid(beta (text gap + media gap - gamma (KL_l - sg KL_w))), differing tokens weigh 4.

    CHiP, arXiv 2501.16629, the released code (code read): gaps are sums of log-ratios with `span_weight` on
    the tokens in which the two answers differ; KL is sum_t KL(pi_ref || pi) over an answer. The paper's form
    is `chip`. The code trains on recorded pairs for one epoch at learning rate 5e-7, vision tower frozen.
    """
    form = Linear(
        {"text": 1.0, "media": 1.0},
        beta,
        scoring=Spans("segment", span_weight),
        margin=KLGap(beta * gamma),
    )
    return one_stage(
        "chip_released",
        paper="CHiP: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs, "
        "arXiv 2501.16629",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap) >> Damage("m", Diffuse(step, "normalised")),
        # The media gap weighs the same tokens of the winner as the text gap does.
        compare=TEXT_AND_MEDIA | DiffSpans("segment") | DiffSpans("segment", ("media",), against="l@x"),
        objective=form,
    )
