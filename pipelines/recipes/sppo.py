"""SPPO: self-play with win probabilities among the samples."""

from __future__ import annotations

from pipelines.objectives.sides import Sides, Sppo
from pipelines.programs.choosing import Choose
from pipelines.programs.sampling import Sample
from pipelines.programs.winning import WinProbability
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import renewed
from pipelines.recipes._text import TEXT


def recipe(
    *, samples: int = 5, beta: float = 0.1, rounds: int = 3, min_gap: float = 0.0, lora: bool = False
) -> Recipe:
    """1/2 [(rho_w - (P_w - 1/2) / beta)^2 + (rho_l - (P_l - 1/2) / beta)^2].

    SPPO, arXiv 2405.00675 (released code read): P_i is the mean of sigmoid(r_i - r_j) over the samples, j = i
    included; the best and the worst are kept. Each round starts from the last one's policy as its reference.
    The paper's beta is 0.001 with a reward model's scale; the default here suits a reward within [0, 1].
    `lora`: the run trains an adapter, which is merged between the rounds.
    """
    stage = Stage(
        rollout=Sample(samples) >> WinProbability() >> Choose(min_gap),
        compare=TEXT,
        objective=1.0 * Sides("text", beta, Sppo(part="win")),
        then=renewed(lora),
    )
    return Recipe(
        name="sppo",
        paper="Self-Play Preference Optimization for Language Model Alignment, arXiv 2405.00675",
        source="code read",
        stages=(stage,) * rounds,
    )
