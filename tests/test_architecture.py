"""Who may import whom: the contracts of pyproject.toml hold, and importing `pipelines` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("ray", "vllm", "deepspeed")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import pipelines
names = [module.name for module in pkgutil.walk_packages(pipelines.__path__, "pipelines.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 20, names
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_all_of_pipelines_loads_no_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {*HEAVY, "transformers", "actors", "serving"}


def test_the_contracts_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 kept" not in done.stdout


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(top-level name, whether it is imported when the module is) of every import of a file."""
    tree = ast.parse(file.read_text())
    at_top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from ((name.partition(".")[0], id(node) in at_top) for name in names)


@pytest.mark.parametrize("engine", ["vllm", "deepspeed"])
def test_an_engine_is_imported_only_by_actors(engine: str) -> None:
    files = [file for package in ("pipelines", "serving") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 20
    assert [file for file in files if any(name == engine for name, _ in imports(file))] == []


def test_the_command_reaches_actors_and_serving_only_when_a_command_runs() -> None:
    found = [
        (name, at_top)
        for name, at_top in imports(ROOT / "pipelines" / "cli.py")
        if name in ("actors", "serving")
    ]
    assert found
    assert not any(at_top for _, at_top in found)


def test_no_other_distribution_brings_packages_of_our_names() -> None:
    """Our names are common words; whatever else is installed must not provide them."""
    from importlib.metadata import packages_distributions

    for name in ("pipelines", "actors", "serving"):
        assert set(packages_distributions().get(name, [])) <= {"plumbline"}
