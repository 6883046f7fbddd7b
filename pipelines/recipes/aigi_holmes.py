"""AIGI-Holmes: fine-tune, then prefer well-prompted and human-mended explanations."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.programs.asking import Ask
from pipelines.programs.choosing import Unlike
from pipelines.programs.editing import Edited
from pipelines.programs.given import Gold
from pipelines.programs.mixing import Either
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.recipes._text import TEXT


def recipe(
    *,
    beta: float = 0.1,
    prompted_share: float = 0.5,
    positive: str = "be helpful . see all objects .",
    negative: str = "be short . see nothing .",
    tune_share: float = 1.0,
    lora: bool = False,
) -> Recipe:
    """NLL on gold, then DPO on pairs by opposite prompts (D1) or by correction (D2).

    AIGI-Holmes, arXiv 2507.02664 (third-party note): beta 0.1, learning rate 5e-7, two epochs. D1: an answer
    sampled with a `positive` instruction against one with a `negative` instruction, both scored under the
    plain prompt. D2: the policy's own answer against its correction by the run's editor (people there).
    Detector pretraining comes before, and expert logits are added when decoding; both are left out. Inferred:
    the share of D1 and the wording, which suits the small model of the examples.
    """
    prompted = (
        Ask("positive", positive)
        >> Sample(1, "w", under="positive", judged=False)
        >> Ask("negative", negative)
        >> Sample(1, "l", under="negative", judged=False)
        >> Unlike()
    )
    edited = Sample(1, "l", judged=False) >> Edited("w", of="l", kind="correct")
    return Recipe(
        name="aigi_holmes",
        paper="AIGI-Holmes: Towards Explainable and Generalizable AI-Generated Image Detection via "
        "Multimodal Large Language Models, arXiv 2507.02664",
        source="third-party note; wording and shares inferred",
        experimental=True,
        stages=(
            Stage(
                rollout=Gold("g"),
                compare=Cells({"gold": "g@x"}),
                objective=1.0 * Nll("gold"),
                share=tune_share,
                then=renewed(lora),
            ),
            Stage(
                rollout=Either(prompted_share, prompted, edited),
                compare=TEXT,
                objective=1.0 * Pair("text", beta),
            ),
        ),
    )
