"""RRPO: preferences on the concepts that differ, with a token KL on the chosen answer."""

from __future__ import annotations

from pipelines.comparing.spans import DiffSpans
from pipelines.objectives.kl import TokenKl
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import OnlySpans
from pipelines.perturbations.fill import PixelMask
from pipelines.perturbations.geometry import PatchShuffle
from pipelines.programs.choosing import Choose
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Gold
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, one_stage


def recipe(
    *,
    samples: int = 4,
    beta: float = 0.1,
    alpha: float = 0.01,
    mask_share: float = 0.4,
    patch: int = 8,
    grid: int = 2,
) -> Recipe:
    """-log sigmoid(beta * gap over differing tokens) + alpha * sum_t KL(pi_ref || pi) on the winner.

    RRPO, arXiv 2504.12083 (code and third-party note read). The rejected answer is a wrong one, sampled under
    a damaged input and scored under the clean one; the chosen one is the gold answer. There 25 to 50% of a
    video's frames are masked and the rest shuffled locally; here patches of the picture are (`grid` x `grid`
    shuffled, `mask_share` masked). There a language model marks the concepts that differ; here the tokens
    that do.
    """
    program = (
        Gold("g", judged=True)
        >> Damage("shuffled", PatchShuffle(grid))
        >> Damage("m", PixelMask(mask_share, patch), under="shuffled")
        >> Sample(samples, "y", under="m")
        >> Choose(of="g", against="y")
    )
    return one_stage(
        "rrpo",
        paper="Self-alignment of Large Video Language Models with Refined Regularized Preference "
        "Optimization, arXiv 2504.12083",
        source="code read; third-party note. Spans by token difference are ours",
        rollout=program,
        compare=TEXT | DiffSpans("concept"),
        objective=Pair("text", beta, scoring=OnlySpans("concept"))
        + alpha * TokenKl("text.winner", "forward"),
    )
