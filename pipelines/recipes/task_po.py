"""Task preference optimisation: auxiliary heads beside the likelihood."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.heads import Aux
from pipelines.objectives.nll import Nll
from pipelines.programs.given import Gold
from pipelines.programs.targets import BoxTargets
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.references import NoReference

CORNERS = ("box.x0", "box.y0", "box.x1", "box.y1")


def recipe(*, box: float = 1.0, task: float = 1.0, most: int = 8) -> Recipe:
    """NLL of the gold answer + a box head's squared error + a head's cross-entropy; not a preference loss.

    Task preference optimisation (not temporal or tree TPO), arXiv 2412.19326 (third-party note): losses of
    task heads flow back through the model. There task tokens choose among a box decoder, a temporal one and
    SAM 2; here one head predicts the first of the row's `boxes`, as shares of the picture, and one how many
    there are (up to `most`), from the mean of the answer's last hidden states (inferred).
    """
    return one_stage(
        "task_po",
        paper="Task Preference Optimization: Improving Multimodal Large Language Models with Vision Task "
        "Alignment, arXiv 2412.19326",
        source="third-party note; heads inferred",
        rollout=Gold("g") >> BoxTargets("g"),
        compare=Cells({"gold": "g@x"}),
        objective=Nll("gold")
        + box * Aux("gold", "box", CORNERS)
        + task * Aux("gold", "count", ("boxes",), "cross_entropy", most + 1),
        reference=NoReference(),
        experimental=True,
    )
