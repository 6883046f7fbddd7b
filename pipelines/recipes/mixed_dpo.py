"""Mixed-DPO: each group is a recorded pair or a fresh one."""

from __future__ import annotations

from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Offline
from pipelines.programs.mixing import Either
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, p: float = 0.5, samples: int = 2, min_gap: float = 0.0, beta: float = 0.1) -> Recipe:
    """DPO on the recorded pair with probability `p`, else on two ranked answers of the policy.

    "Understanding Alignment in Multimodal LLMs", arXiv 2407.02477 (paper read): LLaVA-1.6-34B ranks the two
    answers; here the run's reward does. `p` = 1 is offline, 0 online DPO.
    """
    return one_stage(
        "mixed_dpo",
        paper="Understanding Alignment in Multimodal LLMs: A Comprehensive Study, arXiv 2407.02477",
        source="paper read",
        rollout=Either(p, Offline(), best_and_worst(samples, min_gap)),
        objective=Pair("text", beta),
    )
