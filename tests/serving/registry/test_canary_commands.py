"""`plumbline canary start` and `end`: what people type, and what the history keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli import app
from serving.registry.canary import CanaryRules
from serving.registry.commands import promote
from serving.registry.followed import Followed
from serving.registry.registry import Registry

Commit = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path, commit_checkpoint: Commit) -> list[str]:
    return [str(commit_checkpoint(tmp_path / f"run-{n}", n, weight=n)) for n in (1, 2)]


@pytest.fixture
def registry(tmp_path: Path, runs: list[str]) -> Path:
    folder = tmp_path / "registry"
    promote(runs[0], registry=folder, force=True, reason="a start")
    return folder


def canary(registry: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["canary", *arguments, "--registry", str(registry)])


def test_a_checkpoint_is_registered_and_answers_its_share_until_it_is_ended(
    registry: Path, runs: list[str]
) -> None:
    started = canary(registry, "start", runs[1], "--weight", "0.25", "--why", "shorter answers")
    assert started.exit_code == 0, started.output
    version = Registry(registry).entries()[1].id
    assert version in started.stdout and "25%" in started.stdout
    plan = Followed(Registry(registry), CanaryRules()).plan()
    assert plan.canary is not None and (plan.canary.id, plan.weight) == (version, 0.25)

    again = canary(registry, "start", version, "--weight", "0.5")
    assert again.exit_code == 0 and Registry(registry).canary() == (Registry(registry).entry(version), 0.5)

    ended = canary(registry, "end", "--why", "too short")
    assert ended.exit_code == 0 and version in ended.stdout and Registry(registry).canary() is None
    acts = [(act["act"], act.get("why")) for act in Registry(registry).history() if act["version"] == version]
    assert acts[1:] == [
        ("canary", "shorter answers"),
        ("canary", "started by hand"),
        ("canary_ended", "too short"),
    ]
    shown = CliRunner().invoke(app, ["history", "--registry", str(registry)]).stdout
    assert "canary, 25%" in shown and "shorter answers" in shown and "canary ended" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["start", "{new}", "--weight", "0"], "at 0 nobody"),
        (["start", "{new}", "--weight", "1.5"], "from 0 to 1, got 1.5"),
        (["start", "{new}", "--weight", "nan"], "from 0 to 1"),
        (["start", "{promoted}", "--weight", "0.1"], "is promoted already"),
        (["start", "v-0123456789ab", "--weight", "0.1"], "not registered"),
        (["start", "nowhere", "--weight", "0.1"], "no such folder"),
        (["end"], "no canary runs"),
    ],
)
def test_mistakes_are_one_message_and_change_nothing(
    registry: Path, runs: list[str], arguments: list[str], says: str
) -> None:
    names = {"{new}": runs[1], "{promoted}": runs[0]}
    refused = canary(registry, *(names.get(one, one) for one in arguments))
    assert refused.exit_code == 2 and says in refused.stderr
    assert Registry(registry).canary() is None
    assert all(act["act"] in ("registered", "promoted") for act in Registry(registry).history())


def test_there_is_no_canary_without_a_promoted_version(tmp_path: Path, runs: list[str]) -> None:
    for arguments in (["start", runs[0], "--weight", "0.1"], ["end"]):
        refused = canary(tmp_path / "none", *arguments)
        assert refused.exit_code == 2 and "there is no registry" in refused.stderr
    Registry(tmp_path / "registry").register(Path(runs[0]))
    refused = canary(tmp_path / "registry", "start", runs[0], "--weight", "0.1")
    assert refused.exit_code == 2 and "beside a promoted version" in refused.stderr
