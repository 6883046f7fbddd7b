"""Online DPO: best against worst of fresh samples."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Damage
from pipelines.recipe import Recipe, Stage


def recipe(*, samples: int = 8, beta: float = 0.1, min_gap: float = 0.0, watch_media: bool = True) -> Recipe:
    """DPO on pairs that the newest policy sampled and a reward labelled.

    DPO, arXiv 2305.18290, equation 7 (from memory); online pairs as in online AI feedback, arXiv 2402.04792
    (from memory), but with the best and the worst of `samples` answers by reward.

    `min_gap`: the two scores must differ by more than this. `watch_media` adds the chosen answer under a
    noised picture as an edge that no term reads, so that visual reliance and the media margin are logged for
    a text-only objective as well; prompts without media train as usual.
    """
    program = best_and_worst(samples, min_gap)
    edges = {"text": ("w@x", "l@x")}
    if watch_media:
        program = program >> Damage("m", Diffuse(500), optional=True)
        edges["media"] = ("w@x", "w@m")
    return Recipe(
        name="online_dpo",
        paper="Direct Preference Optimization, arXiv 2305.18290; online as in arXiv 2402.04792",
        source="TRL's code read for two samples; best and worst of n from memory",
        stages=(
            Stage(
                rollout=program,
                compare=Edges(edges, optional=frozenset({"media"} if watch_media else ())),
                objective=1.0 * Pair("text", beta),
            ),
        ),
    )
