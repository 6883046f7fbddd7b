"""Stages: what fits together, what is not promised, and how stages share the steps of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.comparing.spans import DiffSpans
from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import OnlySpans, Sum
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Blind, Damage
from pipelines.recipe import Recipe, Stage
from pipelines.recipes import load
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
