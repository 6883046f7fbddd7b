"""What the documentation shows must work: links, settings and the method written as one file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines import recipes
from pipelines.recipe import Recipe
from pipelines.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [
        target for target in targets if "://" not in target and not (page.parent / target).resolve().exists()
    ]

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_shown_are_settings(page: Path) -> None:
    for block in blocks(page, "yaml"):
        shown = yaml.safe_load(block)
        if "cluster_name" in shown:  # machines: checked by Ray's launcher elsewhere
            continue
        if isinstance(shown.get("data"), str):
            shown["data"] = {"source": shown["data"]}
        settings = Settings.model_validate(shown)
        recipes.load(settings.recipe, settings.method)


def test_the_method_shown_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "docs" / "methods.md", "python")
    (tmp_path / "shown_method.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))

    built = recipes.load("shown_method:recipe", {"media_weight": 0.25})

    assert isinstance(built, Recipe)
    assert [weight for weight, _ in built.stage.objective.terms] == [1.0, 0.25]


def test_every_recipe_is_in_the_table() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE))

    assert listed == set(recipes.names())
