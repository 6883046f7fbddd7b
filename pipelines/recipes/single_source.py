"""More is less: the best and the worst of the policy's own samples, and nothing else."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Edges
from pipelines.decoding import FromCheckpoint
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Recorded
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    source: Literal["self", "strong_chosen"] = "self",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    strong: str | None = None,
) -> Recipe:
    """DPO on own best against own worst; or ("strong_chosen") on a stronger model's answer against its own.

    More is Less (paper's repository read): for safety, pairs whose two sides come from one model beat pairs
    with a stronger model's answer as the chosen one, since a linear probe can tell the sources apart. For
    recorded pairs `plumbline validate` measures that, and `data.max_probe_auc` refuses them. The stronger
    answer is the column `answer`, or sampled from `strong`, a checkpoint that has the policy's tokenizer.
    """
    if strong is not None and source == "self":
        raise ValueError('strong: only source="strong_chosen" has a stronger model')
    own = best_and_worst(samples, min_gap)
    theirs = (
        Sample(1, "w", decoder=FromCheckpoint(path=strong), judged=False)
        if strong
        else Recorded("w", "answer")
    )
    mixed = theirs >> Sample(1, "l", judged=False)
    return one_stage(
        "single_source",
        paper="More is Less: The Pitfalls of Multi-Model Synthetic Preference Data in DPO Safety Alignment, "
        "arXiv 2504.02193",
        source="code read",
        rollout=own if source == "self" else mixed,
        compare=Edges({"text": ("w@x", "l@x")}),
        objective=Pair("text", beta),
    )
