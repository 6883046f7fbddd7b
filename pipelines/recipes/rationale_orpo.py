"""RORPO: ORPO with rationales."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import LogOdds
from pipelines.programs.asking import explain
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *, pairs: Pairs = "online", samples: int = 8, min_gap: float = 0.0, beta: float = 0.1, gamma: float = 1.0
) -> Recipe:
    """ORPO - gamma log pi(e | x, w, l), e a text that says why w is better.

    Preference learning with rationales (released code read). The policy is asked for the rationale, since no
    other model is at hand; a gamma of 0 leaves the base loss. Not to be confused with robust DPO or
    Re-Align's rDPO.
    """
    return one_stage(
        "rationale_orpo",
        paper="Data-Centric Human Preference Optimization with Rationales, arXiv 2407.14477",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap) >> explain(),
        compare=TEXT | Cells({"e": "e@xwl"}),
        objective=beta * Pair("text", 1.0, scoring=LogOdds())
        + Nll("text.winner", "batch_tokens")
        + gamma * Nll("e", "sum"),
        reference=NoReference(),
    )
