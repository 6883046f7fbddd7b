"""FSPO: preferences of a user, shown in the prompt as examples."""

from __future__ import annotations

from pipelines.comparisons import Cells, Edges
from pipelines.objectives.links import Square
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.programs.given import Offline
from pipelines.programs.shots import Shots
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.references import NoReference


def recipe(*, beta: float = 0.01, shots: int = 4, column: str = "shots", lora: bool = False) -> Recipe:
    """Supervised tuning, then IPO on sums, both behind `shots` labelled examples of the user.

    FSPO, arXiv 2502.19312 (code read). The row's `column` lists the user's examples: {"question", "chosen",
    "rejected"} each, and `chosen`, `rejected` are that user's answers to the question at hand. The optional
    description of the user that the paper generates first is left out. The tuned model is the reference of
    the second stage (`lora`: the run trains an adapter, which is merged between). Inferred: sums in IPO.
    """
    program = Offline() >> Shots("xu", column, shots)
    return Recipe(
        name="fspo",
        paper="FSPO: Few-Shot Preference Optimization of Synthetic Preference Data, arXiv 2502.19312",
        source="code read; sums in IPO inferred",
        stages=(
            Stage(
                rollout=program,
                compare=Cells({"w": "w@xu"}),
                objective=1.0 * Nll("w", "sequence_mean"),
                reference=NoReference(),
                then=renewed(lora),
            ),
            Stage(
                rollout=program,
                compare=Edges({"text": ("w@xu", "l@xu")}),
                objective=1.0 * Pair("text", beta, Square()),
            ),
        ),
    )
