"""mrDPO: rounds of DPO with a fresh reference, a likelihood term, and a rebirth."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.decoding import FromReference
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Gold
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed, repeated
from pipelines.recipes._text import TEXT


def recipe(
    *,
    rounds: int = 4,
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    sft: float = 0.1,
    rebirth: bool = True,
    lora: bool = False,
    rank: int | None = None,
) -> Recipe:
    """`rounds` of DPO + 0.1 * NLL of the gold answer, the reference renewed after each; then rebirth.

    video-SALMONN 2, arXiv 2506.15220 (code and abstract read). A round is 1,000 steps there; after it the
    LoRA adapter (rank 128, alpha 256) is merged into the base, which becomes the reference. Answers are
    scored by missing and hallucinated events (the run's reward). Rebirth fine-tunes the model of the start on
    answers of the last one, which is then the reference: it needs an engine that samples from the reference
    (Hugging Face). `lora`: the run trains an adapter.
    """
    one = Stage(
        rollout=best_and_worst(samples, min_gap) >> Gold("g"),
        compare=TEXT | Cells({"gold": "g@x"}),
        objective=Pair("text", beta) + sft * Nll("gold"),
        then=renewed(lora, rank),
    )
    born_again = Stage(
        init="start",
        rollout=Sample(1, "y", decoder=FromReference(), judged=False),
        compare=Cells({"taught": "y@x"}),
        objective=1.0 * Nll("taught"),
    )
    return Recipe(
        name="mrdpo",
        paper="video-SALMONN 2: Caption-Enhanced Audio-Visual Large Language Models, arXiv 2506.15220",
        source="code and abstract read",
        stages=(*repeated(one, rounds)[:-1], one, born_again) if rebirth else repeated(one, rounds),
    )
