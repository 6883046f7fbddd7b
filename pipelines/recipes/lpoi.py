"""LPOI: a list of pictures in which the key object is hidden more and more."""

from __future__ import annotations

from pipelines.comparisons import Cells
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.pair import Pair
from pipelines.objectives.ranking import PlackettLuce
from pipelines.perturbations.fill import graded
from pipelines.perturbations.regions import OneObject
from pipelines.programs.damaging import DamageMany
from pipelines.recipe import Recipe
from pipelines.recipes._text import TEXT, Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    length: int = 5,
) -> Recipe:
    """Text pair + Plackett-Luce of the chosen answer over `length` pictures + anchor, 1:1:1.

    LPOI, arXiv 2505.21061 (third-party note): the clean picture comes first, then `length` - 1 in which a
    growing share of a key object is masked. The object is one of the row's `boxes` that the chosen answer
    speaks of. Where it is small, levels may coincide and the list is shorter. Weights and beta inferred.
    """
    if length < 2:
        raise ValueError(f"lpoi: a list has at least 2 pictures, got length={length}")
    hidden = {f"hidden{level}": f"w@g/{level}" for level in range(length - 1)}
    return one_stage(
        "lpoi",
        paper="LPOI: Listwise Preference Optimization for Vision Language Models, arXiv 2505.21061",
        source="third-party note; weights inferred",
        rollout=pairs_from(pairs, samples, min_gap) >> DamageMany("g", graded(length - 1), (OneObject(0),)),
        compare=TEXT | Cells({"shown": "w@x", **hidden}, optional=frozenset(hidden)),
        objective=Pair("text", beta)
        + PlackettLuce(("shown", *hidden), beta)
        + Anchor("text.winner", 0.0, beta),
        experimental=True,
    )
