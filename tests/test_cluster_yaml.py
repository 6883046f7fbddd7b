"""Ray's own launcher checks the files for `ray up`, offline: their schema, not credentials or images."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


def written_in(file: str) -> dict[str, Any]:
    """A launcher file, or the one YAML block of a page that is a launcher file."""
    text = (ROOT / file).read_text()
    if file.endswith(".md"):
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        (text,) = [block for block in blocks if "cluster_name:" in block]
    return yaml.safe_load(text)


def check(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("file", ["cluster.yaml", "docs/clusters.md"])
def test_the_launcher_accepts_the_file(file: str) -> None:
    assert check(written_in(file))["cluster_name"] == "plumbline"


@pytest.mark.parametrize(
    ("key", "misspelt"), [("max_workers", "max_worker"), ("head_node_type", "head_node_typ")]
)
def test_a_misspelt_key_is_rejected(key: str, misspelt: str) -> None:
    config = written_in("cluster.yaml")
    config[misspelt] = config.pop(key)

    with pytest.raises(Exception, match=misspelt):
        check(config)


def test_a_misspelt_key_of_a_node_type_is_rejected() -> None:
    config = written_in("cluster.yaml")
    config["available_node_types"]["gpu_worker"]["label"] = {}

    with pytest.raises(Exception, match="label"):
        check(config)


def test_every_node_installs_the_project_with_its_gpu_extra() -> None:
    prepared = check(written_in("cluster.yaml"))

    assert any("pip install" in command and ".[gpu]" in command for command in prepared["setup_commands"])
    assert "~/plumbline" in prepared["file_mounts"]


@pytest.mark.parametrize("file", ["cluster.yaml", "docs/clusters.md"])
def test_every_node_asks_for_the_token(file: str) -> None:
    prepared = check(written_in(file))

    assert "~/.ray/auth_token" in prepared["file_mounts"]
    for commands in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert start.startswith("RAY_AUTH_MODE=token ")


def test_the_file_describes_machines_only() -> None:
    """Hyperparameters live in a run's settings; the same run must fit any cluster."""
    from pipelines.settings import LearnerSettings, RolloutSettings

    words = set(re.findall(r"[a-z_]+(?=:)", (ROOT / "cluster.yaml").read_text()))

    assert not words & (set(LearnerSettings.model_fields) | set(RolloutSettings.model_fields))
