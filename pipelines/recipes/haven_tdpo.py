"""HAVEN's TDPO: learn to think aloud, then prefer thoughts whose false segments were mended."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Spans
from pipelines.programs.editing import Edited
from pipelines.programs.given import Recorded
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.recipes._text import TEXT


def recipe(
    *,
    beta: float = 0.1,
    span_weight: float = 2.0,
    thoughts: str = "answer",
    tune_share: float = 1.0,
    lora: bool = False,
) -> Recipe:
    """NLL on long reasoning (SRFT), then a pair of own thoughts against corrected ones, segments weighted.

    HAVEN, arXiv 2503.19622 (abstract read; details inferred). `thoughts`: the column with reasoning traces.
    In stage 2 the rejected answer is the policy's own, the chosen one its correction by the run's editor
    ("correct"; annotators there), and tokens in which they differ weigh `span_weight`.
    """
    return Recipe(
        name="haven_tdpo",
        paper="Exploring Hallucination of Large Multimodal Models in Video Understanding: "
        "Benchmark, Analysis and Mitigation, arXiv 2503.19622",
        source="abstract; the loss and its weights inferred",
        experimental=True,
        stages=(
            Stage(
                rollout=Recorded("g", thoughts),
                compare=Cells({"gold": "g@x"}),
                objective=1.0 * Nll("gold"),
                share=tune_share,
                then=renewed(lora),
            ),
            Stage(
                rollout=Sample(1, "l", judged=False) >> Edited("w", of="l", kind="correct"),
                compare=TEXT | DiffSpans("segment"),
                objective=1.0 * Pair("text", beta, scoring=Spans("segment", span_weight)),
            ),
        ),
    )
