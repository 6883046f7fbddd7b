"""Stages: what fits together, what is not promised, and how stages share the steps of a run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Edges
from pipelines.objectives.implicit import FSft
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import OnlySpans, Sum
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Blind, Damage
from pipelines.recipe import MergeAdapter, Recipe, Refresh, Stage
from pipelines.recipes import load, names, parameters
from pipelines.references import NoReference

TEXT = Edges({"text": ("w@x", "l@x")})
PLAIN: dict[str, Any] = {
    "rollout": best_and_worst(2),
    "compare": TEXT,
    "objective": 1.0 * Pair("text"),
}
MEDIA = Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")})


def test_what_does_not_contradict() -> None:
    Stage(**PLAIN)
    Stage(**{**PLAIN, "rollout": PLAIN["rollout"] >> Damage("m", Diffuse(500)), "compare": MEDIA})
    free = 1.0 * Pair("text", scoring=Sum(against=None))
    Stage(**{**PLAIN, "objective": free, "reference": NoReference()})
    Stage(
        **{
            **PLAIN,
            "compare": TEXT | DiffSpans("concept"),
            "objective": 1.0 * Pair("text", scoring=OnlySpans("concept")),
        }
    )


def test_optional_damage_is_not_promised() -> None:
    """A damage that may be left out cannot carry an edge that must be there."""
    watched = PLAIN["rollout"] >> Damage("m", Diffuse(500), optional=True)
    with pytest.raises(ValueError, match=r"takes \['m'\]"):
        Stage(**{**PLAIN, "rollout": watched, "compare": MEDIA})
    Stage(**{**PLAIN, "rollout": watched, "compare": replace(MEDIA, optional=frozenset({"media"}))})


def test_another_prompt_does_not_stand_in_for_the_damaged_one() -> None:
    blind = PLAIN["rollout"] >> Blind("blind")
    with pytest.raises(
        ValueError, match=r"takes \['m'\] but the program makes only \['blind', 'l', 'w', 'x', 'y'\]"
    ):
        Stage(**{**PLAIN, "rollout": blind, "compare": MEDIA})


def test_a_stage_has_a_share() -> None:
    with pytest.raises(ValueError, match=r"share > 0, got 0, 1 and 0"):
        Stage(**{**PLAIN, "share": 0.0})


def test_stages_share_the_steps() -> None:
    """Shares 3 and 1 of 10 steps: the first ends after round(7.5) = 8. One step cannot be shared by two."""
    recipe = load("povid", {})
    assert recipe.ends(10) == (8, 10)
    assert [recipe.stage_at(step, 10) for step in (1, 8, 9, 10)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"'povid' has 2 stages.*learner.steps=1.*raise learner.steps"):
        recipe.ends(1)
    with pytest.raises(ValueError, match="has no stage"):
        Recipe(name="empty", paper="", source="", stages=())


# -- what a stage after fine-tuning refers to ----------------------------------------------------------------


def tuned_before(recipe: Recipe) -> list[Stage]:
    """Stages that only fine-tune, each directly before one that goes on from it and reads a reference."""
    return [
        before
        for before, after in pairwise(recipe.stages)
        if all(isinstance(term, Nll | FSft) for _, term in before.objective.terms)
        and after.objective.reads_reference
        and after.init == "previous"
    ]


def becomes_reference(stage: Stage) -> bool:
    return any(isinstance(action, Refresh | MergeAdapter) for action in stage.then)


TUNED_FIRST = [name for name in names() if tuned_before(load(name, {}))]


@pytest.mark.parametrize("name", TUNED_FIRST)
def test_after_fine_tuning_the_reference_is_the_tuned_model(name: str) -> None:
    """Else the log-ratio of the first preference step would hold what fine-tuning changed. With an adapter
    this takes a merge."""
    assert all(map(becomes_reference, tuned_before(load(name, {}))))
    if any(parameter.name == "lora" for parameter in parameters(name)):
        for stage in tuned_before(load(name, {"lora": True})):
            assert any(isinstance(action, MergeAdapter) for action in stage.then)


def test_the_rule_about_fine_tuning_finds_its_cases() -> None:
    assert {"aigi_holmes", "implicit_sft", "opa_dpo"} <= set(TUNED_FIRST) and "povid" not in TUNED_FIRST
    recipe = load("opa_dpo", {})
    first, *rest = recipe.stages
    (forgotten,) = tuned_before(replace(recipe, stages=(replace(first, then=()), *rest)))
    assert not becomes_reference(forgotten)
