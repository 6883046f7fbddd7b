"""mDPO: conditional preference optimisation with cropped pictures."""

from __future__ import annotations

from pipelines.perturbations.crop import Crop
from pipelines.programs.damaging import Damage
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import TEXT_AND_MEDIA, three_terms
from pipelines.recipes._text import Pairs, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    beta: float = 0.1,
    min_gap: float = 0.0,
    crop_low: float = 0.01,
    crop_high: float = 0.2,
    delta: float = 0.0,
) -> Recipe:
    """Text pair + media pair + anchor on the chosen answer, unweighted.

    mDPO, arXiv 2406.11839: DPO, the conditional term on (w, image) against (w, cropped image), and the anchor
    -log sigmoid(rho_w - delta). The loss and the crop (1 to 20 percent of the area kept) follow the released
    code (code read) and third-party notes; there the pairs are recorded, with `pairs` "online" the policy
    samples them.
    """
    return Recipe(
        name="mdpo",
        paper="mDPO: Conditional Preference Optimization for Multimodal LLMs, arXiv 2406.11839",
        source="code read; third-party notes. Online pairs are ours",
        stages=(
            Stage(
                rollout=pairs_from(pairs, samples, min_gap) >> Damage("m", Crop(crop_low, crop_high)),
                compare=TEXT_AND_MEDIA,
                objective=three_terms(beta, delta),
            ),
        ),
    )
