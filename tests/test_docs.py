"""What the documentation shows must work: links, settings and the method written as one file."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import serving.settings
from pipelines import catalogue, recipes
from pipelines.editors import load_editor
from pipelines.rewards import load_reward
from pipelines.rewards.base import is_reward
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
        if page.name == "serving.md":
            serving.settings.Settings.model_validate(shown)
            continue
        if isinstance(shown.get("data"), str):
            shown["data"] = {"source": shown["data"]}
        settings = Settings.model_validate(shown)
        recipes.load(settings.recipe, settings.method)


def test_the_walk_through_a_new_method_does_what_it_says(tmp_path: Path) -> None:
    page = ROOT / "docs" / "add_a_method.md"
    for code in blocks(page, "python"):
        name, _, body = code.partition("\n")
        target = tmp_path / name.removeprefix("# ")
        target.parent.mkdir(exist_ok=True)
        target.write_text(body)
    (shown,) = blocks(page, "bash")
    validate = shlex.split(shown.splitlines()[0])
    command = f"import sys; sys.argv = {validate!r}; from pipelines.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    golden = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_calm.py")
    validated = run("-c", command)

    assert "2 passed" in golden.stdout, golden.stdout + golden.stderr
    assert validated.returncode == 0, validated.stdout + validated.stderr


def test_the_reward_and_the_editor_shown_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in blocks(ROOT / "docs" / "own_data.md", "python"):
        name, _, body = code.partition("\n")
        if name.startswith("# ") and name.endswith(".py"):
            (tmp_path / name.removeprefix("# ")).write_text(body)
    own = {"data": {"source": "rows.jsonl"}, "model": "model"}
    reward, editor = f"{tmp_path}/rewards.py:build", f"{tmp_path}/edits.py:rewrite"
    settings = Settings.model_validate({**own, "reward": reward, "editor": editor})

    assert is_reward(load_reward(settings))
    edited = asyncio.run(load_editor(settings)("two", "inject", {}, 0))

    assert edited == "three"


def test_the_page_of_methods_is_made_from_the_recipes() -> None:
    assert (ROOT / "docs" / "methods.md").read_text() == catalogue.page(), "run `make docs`"
