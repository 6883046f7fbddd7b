"""NaPO: noisy pairs from answers without the picture and without the words, and a link that doubts them."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.links import DynamicBoxCox
from pipelines.objectives.pair import Pair
from pipelines.programs.choosing import Unlike
from pipelines.programs.damaging import Blind, Wordless
from pipelines.programs.given import Gold
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(*, beta: float = 0.1, alpha: float = 1.0) -> Recipe:
    """(1 - sigmoid(h)^q) / q on two pairs, q = 1 - sigmoid(alpha h) of each sample, h = beta gap.

    NaPO, arXiv 2503.17928 (third-party note). The gold answer is preferred to the policy's answer without the
    picture (language bias) and to its answer without the words of the prompt (vision bias); both are scored
    under the full prompt. q near 0 trusts a pair as DPO does, q near 1 bounds its loss. Inferred: the two
    losses weigh 1:1, and the margin statistic inside q is the pair's own, without gradient.
    """
    program = (
        Gold("w")
        >> Blind("blind")
        >> Sample(1, "b", under="blind", judged=False)
        >> Unlike("w", "b")
        >> Wordless("wordless")
        >> Sample(1, "v", under="wordless", judged=False)
        >> Unlike("w", "v")
    )
    link = DynamicBoxCox(alpha)
    return one_stage(
        "napo",
        paper="Debiasing Multimodal Large Language Models via Noise-Aware Preference Optimization, "
        "arXiv 2503.17928",
        source="third-party note; weights and margin statistic inferred",
        rollout=program,
        compare=Edges({"language": ("w@x", "b@x"), "vision": ("w@x", "v@x")}),
        objective=Pair("language", beta, link) + Pair("vision", beta, link),
        experimental=True,
    )
