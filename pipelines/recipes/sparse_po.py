"""SparsePO: token masks that a reference's activations give, or that are learned."""

from __future__ import annotations

from typing import Literal

from pipelines.objectives.masks import Activation, Learned, SparsePair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    masks: Literal["activation", "common", "independent"] = "activation",
    l1: float = 0.001,
) -> Recipe:
    """-log sigmoid(beta [(u_w - u_l) - (d_w - d_l)]) + l1 |masks|, u masked log-ratios, d masked token KL.

    SparsePO, arXiv 2410.05102 (code read). u = sum_t m_t (log pi_t - log ref_t), d = -sum_t m'_t KL_t(ref ||
    pi). "activation" (MaPO): m = m' from the reference's hidden states, standardised and scaled to [0, 1]
    within an answer; "common" and "independent" learn one or two masks on them, `l1` being halved for the
    common one, which counts twice. With all masks 1 it is TDPO. The paper reads the hidden states of all
    layers; here they are those of the last.
    """
    weight = {"activation": 0.0, "common": l1 / 2, "independent": l1}[masks]
    kind = Activation() if masks == "activation" else Learned(shared=masks == "common")
    return one_stage(
        "sparse_po",
        paper="SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks, arXiv 2410.05102",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=SparsePair("text", beta, kind, weight),
    )
