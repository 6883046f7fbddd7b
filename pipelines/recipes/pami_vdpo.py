"""PaMi-VDPO: the answer stays, the damaged input is chosen under the prompt."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.perturbations.base import Perturbation
from pipelines.perturbations.colour import ColourJitter
from pipelines.perturbations.crop import Crop
from pipelines.perturbations.fill import PixelMask
from pipelines.perturbations.geometry import PatchShuffle, Rotate
from pipelines.perturbations.noise import Gaussian
from pipelines.programs.damaging import DamageMany, LargestFall, Near
from pipelines.programs.given import Gold
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage

AUGMENTATIONS: tuple[Perturbation, ...] = (
    Crop(0.3, 0.8),
    PixelMask(0.3, 8),
    PatchShuffle(2),
    Rotate(90.0),
    Gaussian(0.2),
    ColourJitter(0.4),
)


def recipe(*, beta: float = 0.1, near: float = 0.6) -> Recipe:
    """Media pair: the gold answer under the input against under its most telling augmentation.

    PaMi-VDPO, arXiv 2504.05810 (abstract and third-party note read). Of several augmentations those are kept
    whose features are close to the input (cosine at least `near`), and of these the one that differs most
    under the prompt: here, where the policy's log-probability of the answer is least. No labels. On pictures
    the augmentations are crop, mask, shuffle, rotation, noise and colour; there clips are cropped, shuffled,
    dropped, reversed and masked. Inferred: both measures, `near`, beta; doubtful choices are not
    down-weighted.
    """
    return one_stage(
        "pami_vdpo",
        paper="PaMi-VDPO: Mitigating Video Hallucinations by Prompt-Aware Multi-Instance Video Preference "
        "Learning, arXiv 2504.05810",
        source="abstract and third-party note; both measures of the choice inferred",
        rollout=Gold("w")
        >> DamageMany("c", AUGMENTATIONS)
        >> Near("c", near)
        >> LargestFall("m", among="c", of="w"),
        compare=Edges({"media": ("w@x", "w@m")}),
        objective=Pair("media", beta),
        experimental=True,
    )
