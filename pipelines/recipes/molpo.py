"""MolPO: the right structure against a perturbed one, with a margin that follows each task."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.margins import TaskEma
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Mean
from pipelines.perturbations.fill import Fill
from pipelines.perturbations.regions import OneObject
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Gold
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.references import NoReference


def recipe(
    *,
    beta: float = 1.0,
    pair: float = 1.0,
    floor: float = 1.0,
    lam: float = -0.5,
    lam_floor: float = 1.0,
    clip: float | None = 2.0,
    decay: float = 0.99,
    task: str | None = None,
) -> Recipe:
    """NLL + pair * -log sigmoid(beta (min(gap, clip |R|) - lam R)) + floor * -log sigmoid(r_l - lam_floor R).

    MolPO of Mol-LLM, arXiv 2502.02810 (a derivative repository's code read). r is the *mean* log-probability
    of the gold answer's tokens, r_l the same under a perturbed structure, R the running mean (EMA 0.99) of
    the chosen r, for each task apart: `task` names the score part that holds the task's number, which asks
    for a reward that gives it. R is below 0, so a target for the gap needs `lam` <= 0, which the code demands
    too; the last term keeps r_l from collapsing. There is no reference. On pictures one random object is
    painted over; there a substructure of a molecule's graph is exchanged. All weights and `clip`'s
    value are inferred; `clip` None leaves the gap as it is.
    """
    if lam > 0:
        raise ValueError(f"molpo: lam must not be positive, since R is negative; got {lam:g}")
    against_none = Mean(against=None)
    bound = None if clip is None else beta * clip
    target = TaskEma("chosen", beta * lam, task, decay, bound, against_none)
    bottom = TaskEma("chosen", lam_floor, task, decay, None, against_none)
    return one_stage(
        "molpo",
        paper="Mol-LLM: Multimodal Generalist Molecular LLM with Improved Graph Utilization, "
        "arXiv 2502.02810",
        source="code of a derivative repository read; weights and the value of clip inferred",
        rollout=Gold("w", judged=task is not None) >> Damage("m", Fill("mean"), OneObject(None)),
        compare=Edges({"media": ("w@x", "w@m")}),
        objective=Nll("media.winner")
        + pair * Pair("media", beta, scoring=against_none, margin=target)
        + floor * Anchor("media.loser", bottom, 1.0, scoring=against_none),
        reference=NoReference(),
        experimental=True,
    )
