"""UV-CoT: answers judged together with what a closer look leads to; the score gap is the margin."""

from __future__ import annotations

from pipelines.comparing.several import Each
from pipelines.objectives.margins import ScoreGap
from pipelines.objectives.pair import Pair
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.programs.choosing import Distinct, Pairs
from pipelines.programs.looking import Closer, Look
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed, repeated
from pipelines.recipes._text import TEXT
from pipelines.rewards.gates import NoTies


def recipe(
    *,
    iterations: int = 4,
    samples: int = 6,
    pairs: int = 2,
    beta: float = 0.1,
    gamma: float = 0.5,
    margin: float = 1.0,
    distinct: bool = False,
    lora: bool = False,
) -> Recipe:
    """-log sigmoid(beta gap - margin (s_w - s_l)) with s = s_now + gamma s_next, regenerated each iteration.

    UV-CoT and its sDPO, arXiv 2504.18397 (code and third-party note read). There the policy names boxes, is
    shown the crops and answers; here the crop is of the row's `boxes` that an answer speaks of. Every
    answer's score adds `gamma` times that of the answer given after the crop. Up to `pairs` pairs per prompt,
    best with worst. `margin` 0 is the released code, which comments the margin out. Inferred: gamma,
    `samples` and `pairs`. `distinct` (ours) leaves out answers with the words of an earlier one before the
    closer look, so that no two pairs repeat each other. After each iteration the reference becomes the policy
    (`lora`: the run trains an adapter).
    """
    closer = Closer(KeyRegions(GraphRank(5), KnownBoxes()))
    gap = ScoreGap(margin) if margin else None
    answers = Sample(samples) >> Distinct() if distinct else Sample(samples)
    one = Stage(
        rollout=answers >> Look("y", closer, gamma) >> Pairs((NoTies(),), pairs),
        compare=Each(("w", "l"), TEXT),
        objective=1.0 * Pair("text", beta, margin=gap),
        then=renewed(lora),
    )
    return Recipe(
        name="uv_cot",
        paper="Unsupervised Visual Chain-of-Thought Reasoning via Preference Optimization, arXiv 2504.18397",
        source="code read; third-party note. Boxes by what an answer speaks of are ours",
        stages=repeated(one, iterations),
    )
