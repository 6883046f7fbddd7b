"""TEMPLE: answers to weaker and weaker damage, one stage each, before fine-tuning."""

from __future__ import annotations

from dataclasses import replace

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.perturbations.fill import PixelMask
from pipelines.programs.choosing import Gated, Unlike
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Gold
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.recipes._text import TEXT
from pipelines.references import NoReference
from pipelines.rewards.gates import LengthRatio


def recipe(
    *,
    ratios: tuple[float, ...] = (16.0, 8.0, 4.0, 2.0),
    beta: float = 0.1,
    patch: int = 8,
    length_ratio: float = 3.0,
    fine_tune: float = 1.0,
    lora: bool = False,
) -> Recipe:
    """DPO in stages of falling damage, the reference renewed after each, then NLL on gold.

    TEMPLE, arXiv 2503.16929 (code and third-party note read). The chosen answer is the gold one, the rejected
    one is sampled under the damaged input and scored under the clean one. A clip keeps n / R of its frames,
    or reorders groups of n / R; large R is obvious and comes first. On pictures 1 - 1/R of the patches are
    masked. `fine_tune`: share of the last stage relative to one DPO stage, 0 for none ("pre-SFT alignment"
    puts it last). `length_ratio` stands for the paper's length filters (inferred). As released: LoRA 32,
    merged between.
    """
    if not ratios or min(ratios) <= 1:
        raise ValueError(f"temple: every ratio must be above 1, got {ratios}")
    stages = tuple(
        Stage(
            rollout=Gold("w")
            >> Damage("m", PixelMask(1 - 1 / ratio, patch))
            >> Sample(1, "l", under="m", judged=False)
            >> Unlike()
            >> Gated((LengthRatio(length_ratio),)),
            compare=TEXT,
            objective=1.0 * Pair("text", beta),
            then=renewed(lora),
        )
        for ratio in ratios
    )
    tuned = Stage(
        rollout=Gold("g"),
        compare=Cells({"gold": "g@x"}),
        objective=1.0 * Nll("gold"),
        reference=NoReference(),
        share=fine_tune or 1.0,
    )
    return Recipe(
        name="temple",
        paper="TEMPLE: Temporal Preference Learning of Video LLMs via Difficulty Scheduling and Pre-SFT "
        "Alignment, arXiv 2503.16929",
        source="code read; third-party note. Damage of pictures is ours",
        stages=(*stages, tuned) if fine_tune else (*stages[:-1], replace(stages[-1], then=())),
    )
