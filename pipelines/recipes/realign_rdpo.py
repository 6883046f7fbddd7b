"""Re-Align's rDPO: a retrieved neighbour is the rejected picture, and what the rejected answer looks at."""

from __future__ import annotations

from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.perturbations.replace import Embedding, Retrieve, colour_layout
from pipelines.perturbations.similarity import ClipEmbedding
from pipelines.programs.choosing import Gated
from pipelines.programs.continuing import Continue
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Recorded
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import TEXT_AND_MEDIA, pictures_of
from pipelines.recipes._text import one_stage
from pipelines.rewards.gates import Similarity


def recipe(
    *,
    beta: float = 0.1,
    sft: float = 0.0,
    pictures: str | None = None,
    clip: str | None = None,
    top: int = 5,
    keep_low: float = 0.2,
    keep_high: float = 0.8,
    similar: float = 0.95,
) -> Recipe:
    """Text pair + media pair; the rejected picture is a similar real one.

    Re-Align (its loss is called rDPO; not `robust_dpo`), arXiv 2502.13146 (loss: code read; data: from
    memory). The rejected picture is one of the `top` nearest of `pictures` by CLIP embedding (`clip`: a
    checkpoint's folder; None: by colour layout). `sft` weighs an optional NLL of the chosen answer, 0 as
    released.

    There a model masks phrases of the chosen answer and refills them while it looks at the neighbour. Here
    the policy keeps the first 20 to 80% of the chosen answer (column `chosen`) and continues under the
    neighbour; a result more than `similar` like the chosen answer by words is dropped (there: by embeddings).
    """
    embed: Embedding = colour_layout if clip is None else ClipEmbedding(clip)
    program = (
        Recorded("w", "chosen")
        >> Damage("m", Retrieve(pictures_of(pictures), embed, top))
        >> Continue("l", of="w", under="m", low=keep_low, high=keep_high)
        >> Gated((Similarity(most=similar),))
    )
    objective = Pair("text", beta) + Pair("media", beta)
    return one_stage(
        "realign_rdpo",
        paper="Re-Align: Aligning Vision Language Models via Retrieval-Augmented Direct Preference "
        "Optimization, arXiv 2502.13146",
        source="loss: code read; data: from memory. Refilling by continuation is ours",
        rollout=program,
        compare=TEXT_AND_MEDIA,
        objective=objective + sft * Nll("text.winner") if sft else objective,
    )
