"""APO: accelerated preference optimisation."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.recipe import Extrapolate, Recipe, Refresh, ResetOptimizer, Stage
from pipelines.recipes._text import TEXT


def recipe(
    *, samples: int = 8, beta: float = 0.1, min_gap: float = 0.0, rounds: int = 3, alpha: float = 0.3
) -> Recipe:
    """Rounds of online DPO; after each, theta <- theta + alpha (theta - theta').

    Accelerated preference optimisation, arXiv 2410.06293 (third-party note; the update is from memory, its
    dynamics were checked): pi_t+1 ~ q_t+1 (q_t+1 / q_t)^alpha, q being what a round trains, so that theta' is
    what the round before had trained, not its extrapolation; in the first round the model of the run. Each
    round's reference is the extrapolated model of the last. alpha = 0 is iterative DPO. Not to be confused
    with anchored preference optimisation (`apo_zero`, `apo_down`).
    """
    stage = Stage(
        rollout=best_and_worst(samples, min_gap),
        compare=TEXT,
        objective=1.0 * Pair("text", beta),
        then=(*((Extrapolate(alpha=alpha),) if alpha else ()), Refresh(), ResetOptimizer()),
    )
    return Recipe(
        name="apo_accelerated",
        paper="Accelerated Preference Optimization for LLM Alignment, arXiv 2410.06293",
        source="third-party note; update from memory",
        experimental=True,
        stages=(stage,) * rounds,
    )
