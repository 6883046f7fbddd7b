"""Which models a server finds, from a command, from a file, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.checkpoint import NotServable
from serving.registry.followed import Followed
from serving.registry.registry import Registry
from serving.replicas.conductor import Fixed
from serving.replicas.integrity import version_of
from serving.served import find
from serving.settings import Settings
from serving.wire import Capabilities

Commit = Callable[..., Path]


def server(**models: dict[str, Any]) -> Settings:
    return Settings.model_validate({"models": models, "replicas": {"fewest": 2, "canary": 1}})


def test_the_command_names_one_model(tmp_path: Path, commit_checkpoint: Commit) -> None:
    folder = commit_checkpoint(tmp_path / "glyphs", 4)
    settings = Settings.model_validate({"replicas": {"fewest": 3}})
    (model,) = find(tmp_path / "glyphs", settings)
    assert (model.servable.name, model.servable.path) == ("glyphs", folder)
    assert model.source == Fixed(version=version_of(folder))
    assert model.settings.replicas.fewest == 3
    assert model.capabilities.task == "generate" and not model.capabilities.tools
    assert find(folder, settings, "other")[0].servable.name == "other"


def test_several_models_have_the_names_of_the_file_and_may_share_a_checkpoint(
    tmp_path: Path, commit_checkpoint: Commit
) -> None:
    folder = str(commit_checkpoint(tmp_path / "glyphs", 4))
    both = {
        "writer": {"target": folder, "engine": {"tools": "hermes"}, "replicas": {"fewest": 1}},
        "vectors": {"target": folder, "engine": {"task": "embed"}},
    }
    writer, vectors = find(None, server(**both))
    assert [model.servable.name for model in (writer, vectors)] == ["writer", "vectors"]
    assert writer.capabilities == Capabilities(task="generate", tools=True)
    assert vectors.capabilities == Capabilities(task="embed", tools=False)
    assert (writer.settings.replicas.fewest, writer.settings.replicas.canary) == (1, 1)
    assert (vectors.settings.replicas.fewest, vectors.settings.replicas.canary) == (2, 1)
    assert writer.settings.replicas.cpus == 4 and vectors.settings.replicas.cpus == 6


def test_a_registry_begins_with_the_target_and_is_followed(tmp_path: Path, commit_checkpoint: Commit) -> None:
    run, folder = tmp_path / "glyphs", tmp_path / "registry"
    commit_checkpoint(run, 4)
    settings = server(one={"target": str(run), "registry": str(folder)})
    (first,) = find(None, settings)
    promoted = Registry(folder).promoted()
    assert promoted is not None and first.servable.path == Path(promoted.path)
    assert isinstance(first.source, Followed) and first.servable.name == "one"

    commit_checkpoint(run, 8, weight=1.0)  # a server that starts again goes on with what is promoted
    (again,) = find(None, settings)
    assert again.servable == first.servable


def test_the_command_names_no_target_beside_a_promoted_version(
    tmp_path: Path, commit_checkpoint: Commit
) -> None:
    run = tmp_path / "glyphs"
    commit_checkpoint(run, 4)
    settings = Settings(registry=str(tmp_path / "registry"))
    assert find(run, settings)[0].servable.name == "glyphs"
    assert find(None, settings, "again")[0].servable.name == "again"
    with pytest.raises(NotServable, match="is promoted there"):
        find(run, settings)


@pytest.mark.parametrize(
    ("target", "name", "models", "says"),
    [
        (None, None, {}, "give the run or the checkpoint to serve"),
        (Path("run"), None, {"a": {"target": "x"}}, "models: they say what is served .* leave out run"),
        (None, "b", {"a": {"target": "x"}}, "leave out --name"),
        (None, None, {"a": {"target": "/nowhere"}}, "models.a: /nowhere: no such folder"),
        (
            None,
            None,
            {"a": {"registry": "/nowhere/r"}},
            "models.a: /nowhere/r: nothing is promoted there yet",
        ),
    ],
)
def test_what_cannot_be_served_is_said(
    target: Path | None, name: str | None, models: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotServable, match=says):
        find(target, server(**models), name)


def test_a_broken_registry_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("not a history\n")
    for settings in (server(a={"registry": str(tmp_path)}), Settings(registry=str(tmp_path))):
        with pytest.raises(NotServable, match="history"):
            find(None, settings)
