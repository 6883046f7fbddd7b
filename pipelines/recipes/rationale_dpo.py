"""RDPO (rationales): pairs and why they are ordered so."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.pair import Pair
from pipelines.objectives.rationale import LogProb
from pipelines.programs.asking import explain
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from


def recipe(
    *, pairs: Pairs = "online", samples: int = 8, min_gap: float = 0.0, beta: float = 0.1, gamma: float = 0.1
) -> Recipe:
    """DPO - log sigmoid(gamma log pi(e | x, w, l)), e a text that says why w is better.

    Preference learning with rationales (released code read). The policy is asked for the rationale, since no
    other model is at hand; a gamma of 0 leaves the base loss. Not to be confused with robust DPO or
    Re-Align's rDPO.
    """
    return one_stage(
        "rationale_dpo",
        paper="Data-Centric Human Preference Optimization with Rationales, arXiv 2407.14477",
        source="code read",
        rollout=pairs_from(pairs, samples, min_gap) >> explain(),
        compare=TEXT | Cells({"e": "e@xwl"}),
        objective=Pair("text", beta) + LogProb("e", gamma),
    )
