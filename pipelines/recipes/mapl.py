"""MAPL: pairs of prompts, and instructions that widen a pair's gap."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Linear, Pair
from pipelines.programs.asking import Constrained, Widened
from pipelines.programs.choosing import best_and_worst
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage


def recipe(
    *, samples: int = 8, min_gap: float = 0.0, beta: float = 0.1, kappa: float = 0.1, inter: bool = True
) -> Recipe:
    """-log sigmoid(beta (rho(w | x_w) - rho(w | x_l))) - log sigmoid(kappa (D_xt - D_x)) + DPO.

    MAPL, arXiv 2505.12845 (third-party note; the second loss is inferred). x_w and x_l add an instruction
    that the answer is known to satisfy, or to violate; xt one that the chosen answer satisfies and the
    rejected violates, so that the gap D = rho(w) - rho(l) must widen. The instructions come from a library of
    checked constraints, without annotators.
    """
    program = best_and_worst(samples, min_gap) >> Constrained(of="w")
    edges = {"text": ("w@x", "l@x"), "prompt": ("w@xw", "w@xl")}
    objective = Pair("text", beta) + Pair("prompt", beta)
    if inter:
        program = program >> Widened()
        edges |= {"wide": ("w@xt", "l@xt")}
        objective = objective + Linear({"wide": 1.0, "text": -1.0}, kappa)
    return one_stage(
        "mapl",
        paper="Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks, "
        "arXiv 2505.12845",
        source="third-party note; second loss inferred",
        rollout=program,
        compare=Edges(edges),
        objective=objective,
        experimental=True,
    )
