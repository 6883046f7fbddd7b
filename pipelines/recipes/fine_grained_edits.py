"""Fine-grained edits: only the tokens that a minimal correction changes are compared."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import OnlySpans
from pipelines.programs.editing import Edited
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, beta: float = 0.1) -> Recipe:
    """-log sigmoid(beta sum over edited tokens of the log-ratios of correction and answer).

    Fine-grained supervision, arXiv 2406.02756 (third-party note; the credit rule is from memory, this DPO
    form is inferred): an editor changes the policy's answer as little as it can; replaced and inserted tokens
    are credited, deleted ones blamed, unchanged ones left alone. The paper trains a token reward and runs
    PPO.
    """
    return one_stage(
        "fine_grained_edits",
        paper="Aligning Large Language Models via Fine-grained Supervision, arXiv 2406.02756",
        source="third-party note; DPO form inferred",
        rollout=Sample(1, "y", judged=False) >> Edited("g", "y", "correct"),
        compare=Edges({"text": ("g@x", "y@x")}) | DiffSpans("edited"),
        objective=Pair("text", beta, scoring=OnlySpans("edited")),
        experimental=True,
    )
