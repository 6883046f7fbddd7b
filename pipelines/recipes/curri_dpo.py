"""Curri-DPO: easy pairs first, the reference renewed between stages."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Ranked
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed


def recipe(
    *,
    samples: int = 4,
    beta: float = 0.1,
    refresh: bool = True,
    pooled: bool = False,
    lora: bool = False,
) -> Recipe:
    """DPO on (best, worst), then (best, second worst), then (best, second), one stage each.

    Curri-DPO, arXiv 2403.07230 (third-party note): the gap of the ratings orders the pairs from easy to hard,
    and each stage's reference is the last stage's model. The answers are ranked by the run's reward; each
    stage samples anew. `pooled` is the paper's ablation: the three pairs of every group in one stage. `lora`:
    the run trains an adapter, which is merged between the stages.
    """
    names = ("a", "b", "c", "d")
    program = Sample(samples) >> Ranked(names=names)
    hard_last = {"easy": ("a@x", "d@x"), "medium": ("a@x", "c@x"), "hard": ("a@x", "b@x")}
    if pooled:
        stages = (
            Stage(
                rollout=program,
                compare=Edges(hard_last),
                objective=Pair("easy", beta) + Pair("medium", beta) + Pair("hard", beta),
            ),
        )
    else:
        stages = tuple(
            Stage(
                rollout=program,
                compare=Edges({"text": cells}),
                objective=1.0 * Pair("text", beta),
                then=renewed(lora) if refresh else (),
            )
            for cells in hard_last.values()
        )
    return Recipe(
        name="curri_dpo",
        paper="Curry-DPO: Enhancing Alignment using Curriculum Learning & Ranked Preferences, "
        "arXiv 2403.07230",
        source="third-party note; ordering of results from memory",
        stages=stages,
        experimental=True,
    )
