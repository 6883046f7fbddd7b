"""UnifiedReward's pair factory: duels first, then points."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Choose
from pipelines.programs.judging import Duels
from pipelines.programs.sampling import Judged, Pool, Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, samples: int = 10, beta: float = 0.1) -> Recipe:
    """DPO of the best duel winner against the worst duel loser by points, if it is strictly better.

    UnifiedReward, arXiv 2503.05236 (code read): 10 answers meet in 5 random duels, winners and losers are
    scored pointwise, and the best winner is paired with the worst loser. beta 0.1, learning rate 5e-7. The
    run's reward judges both: in a duel it sees the two answers as a group, so that a comparing judge compares
    them.
    """
    if samples < 2:
        raise ValueError(f"unified_reward: expected at least 2 samples, got {samples}")
    program = (
        Sample(samples, judged=False)
        >> Duels("y")
        >> Pool("duellists", ("winners", "losers"))
        >> Judged("duellists")
        >> Choose(of="winners", against="losers")
    )
    return one_stage(
        "unified_reward",
        paper="Unified Reward Model for Multimodal Understanding and Generation, arXiv 2503.05236",
        source="code read (its image version)",
        rollout=program,
        objective=Pair("text", beta),
    )
