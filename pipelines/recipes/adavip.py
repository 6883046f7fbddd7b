"""AdaViP: one softmax over the chosen cell, the rejected answer and a picture without a key object."""

from __future__ import annotations

from pipelines.objectives.softmax import Softmax
from pipelines.perturbations.inpaint import Inpaint
from pipelines.perturbations.regions import OneObject
from pipelines.programs.damaging import DamageMany, LeastSimilar
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import SIMILARITY, TEXT_AND_MEDIA, similarity_of
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    candidates: int = 4,
    similarity: str = SIMILARITY,
) -> Recipe:
    """-log softmax of r(w, x) over {r(w, x), r(l, x), r(w, m)}: the harder negative weighs more by itself.

    AdaViP, arXiv 2504.15619 (third-party note). r = beta rho. Up to `candidates` pictures m each lack one
    object that the chosen answer speaks of; the one least similar to that answer is taken. There objects come
    from a tagger, a detector and SAM, are removed by LaMa and compared by CLIP; here from the row's `boxes`,
    by classical inpainting, and by `similarity` ("module:name" or the folder of a CLIP checkpoint). beta
    inferred.
    """
    objects = tuple(OneObject(which) for which in range(candidates))
    return one_stage(
        "adavip",
        paper="AdaViP: Aligning Multi-modal LLMs via Adaptive Vision-enhanced Preference Optimization, "
        "arXiv 2504.15619",
        source="third-party note; beta inferred",
        rollout=pairs_from(pairs, samples, min_gap)
        >> DamageMany("c", (Inpaint(),), objects)
        >> LeastSimilar("m", among="c", of="w", similarity=similarity_of(similarity)),
        compare=TEXT_AND_MEDIA,
        objective=Softmax(("text", "media"), beta),
        experimental=True,
    )
