"""`plumbline feedback forget`: it counts, and deletes when told so."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli import app
from serving.feedback import FeedbackStore
from tests.serving.feedback.speaking import kinds, like, name, remember


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = FeedbackStore(tmp_path, consent="all", sample=1.0)
    remember(store, 1, client="ann", picture="red", text="said to ann")
    remember(store, 2, client="bob", text="said to bob")
    like(store, 1, client="ann")
    return tmp_path


def forget(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["feedback", "forget", str(folder), *arguments])


@pytest.mark.parametrize("told", [["--client", "ann"], ["--answer", name(1)]])
def test_it_counts_first_and_deletes_with_yes(folder: Path, told: list[str]) -> None:
    counted = forget(folder, *told)
    assert counted.exit_code == 0 and counted.stdout.startswith(
        "to be deleted: 1 answers, 1 opinions on them"
    )
    assert kinds(folder) == ["answer", "answer", "rating"]
    deleted = forget(folder, *told, "--yes")
    assert deleted.exit_code == 0
    assert deleted.stdout == "deleted: 1 answers, 1 opinions on them, 1 pictures\n"
    assert kinds(folder) == ["answer"]
    left = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"ann" not in left and b"PNG" not in left


@pytest.mark.parametrize("told", [[], ["--client", "ann", "--answer", name(1)]])
def test_who_is_to_be_forgotten_is_said_once(folder: Path, told: list[str]) -> None:
    refused = forget(folder, *told, "--yes")
    assert refused.exit_code == 2 and "one of them" in refused.stderr
    assert kinds(folder) == ["answer", "answer", "rating"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    refused = forget(tmp_path, "--client", "ann", "--yes")
    assert refused.exit_code == 2 and "feedback.folder" in refused.stderr and not list(tmp_path.iterdir())
