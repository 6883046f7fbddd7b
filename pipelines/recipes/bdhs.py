"""BDHS: the rejected answer is the policy's own, with its eyes nearly shut."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.programs.continuing import SentenceGuided
from pipelines.programs.damaging import VisualDropped
from pipelines.programs.given import Offline
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *,
    beta: float = 0.1,
    rho: float = 0.99,
    similar: float = 0.97,
    tries: int = 5,
    flip: float = 0.5,
    offline_share: float = 0.5,
) -> Recipe:
    """Half DPO on a recorded pair, half DPO against an answer sampled with hidden visual tokens.

    BDHS of "Understanding Alignment in Multimodal LLMs", arXiv 2407.02477 (paper read): each visual embedding
    is hidden from attention with probability `rho`; each sentence of the chosen answer keeps a random
    beginning and is finished so, after the true sentences before it; yes and no are flipped with probability
    `flip`; an answer more than `similar` like the chosen one is drawn again up to `tries` times, finally
    unguided. Sampled with hidden tokens, scored under the clean prompt. Likeness is by words here, by
    sentence embeddings there. It needs an engine that can hide tokens (Hugging Face).
    """
    program = (
        Offline()
        >> VisualDropped("dropped", rho)
        >> SentenceGuided("n", of="w", under="dropped", similar=similar, tries=tries, flip=flip)
    )
    return one_stage(
        "bdhs",
        paper="Understanding Alignment in Multimodal LLMs: A Comprehensive Study, arXiv 2407.02477",
        source="paper read; likeness by words",
        rollout=program,
        compare=Edges({"text": ("w@x", "l@x"), "online": ("w@x", "n@x")}),
        objective=offline_share * Pair("text", beta) + (1 - offline_share) * Pair("online", beta),
    )
