"""Finding recipes by name, their parameters, and what a wrong name or value gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.recipe import Stage
from pipelines.recipes import available, load, names


def test_available_recipes() -> None:
    found = {summary.name: summary for summary in available()}
    assert {"online_dpo", "mdpo", "mfpo"} <= set(found)
    assert list(found) == names()
    for summary in found.values():
        assert summary.summary and summary.paper and summary.source
        assert load(summary.name, {p.name: p.default for p in summary.parameters}).name == summary.name
    parameters = {p.name: (p.type, p.default) for p in found["mdpo"].parameters}
    assert parameters["samples"] == ("int", 8)
    assert parameters["beta"] == ("float", 0.1)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("mdop", {}, r"unknown recipe 'mdop'; did you mean 'mdpo'\?"),
        ("mdpo", {"smaples": 4}, r"no parameter 'smaples'; did you mean 'samples'\?"),
        ("mdpo", {"samples": "many"}, r"recipe 'mdpo': samples: .* got 'many'"),
        ("mdpo", {"samples": 2.5}, r"samples: .* got 2.5"),
        ("mdpo", {"samples": 1}, r"samples: expected at least 2"),
        ("mdpo", {"crop_low": 0.5}, r"recipe 'mdpo': .*0 < low <= high <= 1"),
        ("mfpo", {"regions": "boxs"}, r"regions: .*'boxes'.* got 'boxs'"),
        ("mfpo", {"step": 1000}, r"expected 0 to 999, got 1000"),
        ("no_such_package.module:recipe", {}, r"cannot be imported: No module named 'no_such_package'"),
        ("pipelines.recipes.mdpo:build", {}, r"cannot be imported: .*'build'"),
        ("pipelines.recipes.mfpo:__doc__", {}, r"expected a function, got str"),
        ("pipelines.schedules:InOrder", {}, r"expected a function, got type"),
        ("pipelines.schedules:meaning", {"text": "a"}, r"expected a Recipe, got tuple"),
    ],
)
def test_what_is_refused(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, params)


def test_a_recipe_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [
        "from pipelines.recipes.mdpo import recipe",
        "def mine(*, k: int = 3):",
        "    return recipe(samples=k)",
    ]
    (tmp_path / "my_recipes.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        recipe = load("my_recipes:mine", {"k": 5})
    finally:
        sys.modules.pop("my_recipes", None)
    assert recipe.stages[0].rollout == load("mdpo", {"samples": 5}).stages[0].rollout


def test_a_stage_whose_terms_read_unknown_edges_is_refused() -> None:
    mdpo, dpo = load("mdpo", {}).stages[0], load("online_dpo", {"watch_media": False}).stages[0]
    with pytest.raises(ValueError, match=r"reads the edges \['media'\]"):
        Stage(rollout=dpo.rollout, compare=dpo.compare, objective=mdpo.objective)
