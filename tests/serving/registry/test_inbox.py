"""A running alignment's checkpoints on their way to a server's canary."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.publishing import INBOX, offer
from pipelines.settings import Settings
from serving.registry.canary import CanaryRules
from serving.registry.followed import Followed
from serving.registry.inbox import collect
from serving.registry.registry import Registry

Commit = Callable[..., Path]


def settings(registry: Path | None, **publish: Any) -> Settings:
    given = {"registry": str(registry) if registry else None, **publish}
    return Settings.model_validate({"checkpoint": {"every": 2}, "publish": given})


@pytest.fixture
def registry(tmp_path: Path, commit_checkpoint: Commit) -> Registry:
    """One version is promoted."""
    known = Registry(tmp_path / "registry")
    known.promote(known.register(commit_checkpoint(tmp_path / "old", 1)).id, why="first", against=None)
    return known


def inbox(registry: Registry) -> list[str]:
    return sorted(path.name for path in (registry.folder / INBOX).iterdir())


def test_each_kth_checkpoint_that_falls_due_is_published(
    tmp_path: Path, registry: Registry, commit_checkpoint: Commit
):
    published = settings(registry.folder, every=2)
    for step in (2, 3, 4, 6, 8):  # 3: a run that was stopped commits where it stands
        offer(published, commit_checkpoint(tmp_path / "run", step, weight=step), step)
    assert inbox(registry) == ["run-step-4", "run-step-4.json", "run-step-8", "run-step-8.json"]
    offer(settings(None), tmp_path / "run" / "checkpoints" / "step-8", 8)


def test_the_newest_becomes_the_canary_of_a_running_server(
    tmp_path: Path, registry: Registry, commit_checkpoint: Commit
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("recipe: ipo\nseed: 5\n")
    for step in (2, 4):
        offer(
            settings(registry.folder, weight=0.25),
            commit_checkpoint(tmp_path / "run", step, weight=step),
            step,
        )
        note = registry.folder / INBOX / f"run-step-{step}.json"
        os.utime(note, (step, step))
    shutil.rmtree(tmp_path / "run")  # a run's retention does not reach what was published
    plan = Followed(registry, CanaryRules()).plan()
    assert plan.canary is not None and plan.weight == 0.25 and inbox(registry) == []
    entry = registry.entry(plan.canary.id)
    assert (entry.run, entry.recipe, entry.weight_version) == ("run", "ipo", 4)
    assert len(registry.entries()) == 3
    assert registry.history()[-1]["why"] == "published by the run run at step 4"


def test_it_waits_until_something_is_promoted(tmp_path: Path, commit_checkpoint: Commit):
    known = Registry(tmp_path / "registry")
    offer(settings(known.folder), commit_checkpoint(tmp_path / "run", 2), 2)
    collect(known)
    assert len(inbox(known)) == 2 and known.entries() == []


def test_what_cannot_be_a_canary_is_kept_aside(
    tmp_path: Path, registry: Registry, commit_checkpoint: Commit, caplog: pytest.LogCaptureFixture
):
    offer(settings(registry.folder), commit_checkpoint(tmp_path / "run", 2, weight=2), 2)
    weights = next((registry.folder / INBOX).rglob("model.safetensors"))
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + b"\1")
    collect(registry)
    assert inbox(registry) == ["bad-run-step-2"] and registry.canary() is None
    assert "SHA-256" in caplog.text
    for note in ({"format": 9}, {"format": 1, "run": "../x", "step": 1, "weight": 0.1}, []):
        (registry.folder / INBOX / "odd.json").write_text(json.dumps(note))
        collect(registry)
        assert inbox(registry) == ["bad-run-step-2"]


def test_a_note_without_its_rename_is_not_there_yet(
    tmp_path: Path, registry: Registry, commit_checkpoint: Commit
):
    offer(settings(registry.folder), commit_checkpoint(tmp_path / "run", 2, weight=2), 2)
    note = registry.folder / INBOX / "run-step-2.json"
    os.rename(note, note.with_name(".run-step-2.77"))  # killed before the last rename
    collect(registry)
    assert registry.canary() is None


def test_a_registry_that_cannot_be_written_never_ends_a_run(
    tmp_path: Path, commit_checkpoint: Commit, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    offer(settings(tmp_path / "file"), commit_checkpoint(tmp_path / "run", 2), 2)
    assert "step 2 was not published" in caplog.text
