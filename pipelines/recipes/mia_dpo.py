"""MIA-DPO: one picture among others, and answers that looked at the wrong one."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Gated
from pipelines.programs.composing import Compose, Distracted, Layout
from pipelines.programs.given import Gold
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import pictures_of
from pipelines.recipes._text import one_stage
from pipelines.rewards.gates import LengthRatio


def recipe(
    *,
    samples: int = 4,
    beta: float = 0.1,
    layouts: tuple[Layout, ...] = ("sequence", "collage", "picture_in_picture"),
    pictures: str | None = None,
    most: int = 5,
    attention: tuple[float, ...] = (0.8, 0.7, 0.6, 0.6),
    length_ratio: float = 3.0,
) -> Recipe:
    """DPO of the recorded answer against a distracted one, both under several pictures.

    MIA-DPO, arXiv 2410.17637 (code read). The row's picture is put into a sequence, a collage or another
    picture, of up to `most` pictures in all (others: of the folder `pictures`, or of the glyphs world). The
    rejected answer is sampled there with at most `attention` of its attention to pictures on the one that is
    meant, by their number 2, 3, 4, 5. As released: beta 0.1, learning rate 5e-5, LoRA 128; weight 0 on NLL.

    A collage is one media, so its answers pass without the attention gate; the engine reads one layer, there
    layer 16. The perplexity and edit-distance filters are left out; `length_ratio` is inferred.
    """
    program = (
        Gold("w")
        >> Compose("c", pictures_of(pictures), layouts, most)
        >> Sample(samples, "y", under="c", judged=False)
        >> Distracted("l", of="y", under="c", most=attention)
        >> Gated((LengthRatio(length_ratio),))
    )
    return one_stage(
        "mia_dpo",
        paper="MIA-DPO: Multi-Image Augmented Direct Preference Optimization For Large Vision-Language "
        "Models, arXiv 2410.17637",
        source="code read; filters after the attention gate partly inferred",
        rollout=program,
        compare=Edges({"text": ("w@c", "l@c")}),
        objective=Pair("text", beta),
    )
