"""MCR's contrast as a regulariser: an answer should fit its own picture, not another one."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.mcr import PermutationContrast
from pipelines.objectives.pair import Pair
from pipelines.perturbations.replace import Swap
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Damage
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import pictures_of
from pipelines.recipes._text import one_stage


def recipe(
    *,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    weight: float = 0.01,
    pictures: str | None = None,
) -> Recipe:
    """DPO + weight * contrast of the answer under its picture and under another sample's (permuted modality).

    MCR, arXiv 2411.07335 (code read), permutes one modality's latents across samples and contrasts the
    predictions; here the picture itself is swapped for one of the folder `pictures` (None: of the glyphs
    world). Its game between encoders (another loss for
    each part of the model) does not fit one loss per step and is left out; see the exceptions.
    """
    return one_stage(
        "mcr",
        paper="Multimodal Fusion Balancing Through Game-Theoretic Regularization, arXiv 2411.07335",
        source="code read; only the contrast term",
        rollout=best_and_worst(samples, min_gap) >> Damage("m", Swap(pictures_of(pictures))),
        compare=Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")}),
        objective=Pair("text", beta) + weight * PermutationContrast("media"),
    )
