"""Ray's own launcher checks the files for `ray up`, offline: their schema, not credentials or images."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.settings import LearnerSettings, RolloutSettings

ROOT = Path(__file__).parents[2]
CLOUDS = ("cluster.yaml", "deploy/clusters/aws-spot.yaml", "deploy/clusters/gcp.yaml")
FILES = (*CLOUDS, "deploy/clusters/local.yaml")
# The launcher leaves what is below these to the cloud, to the shell or to the user.
FREE = ("provider", "auth", "file_mounts", "node_config", "labels", "resources")


def read(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


def check(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def keys(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that the launcher itself reads; names of node types are ours."""
    for key, inner in value.items():
        if path != ("available_node_types",):
            yield (*path, key)
        if isinstance(inner, dict) and key not in FREE:
            yield from keys(inner, (*path, key))


def misspelt(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    section = changed
    for key in path[:-1]:
        section = section[key]
    section[f"{path[-1]}x"] = section.pop(path[-1])
    return changed


@pytest.mark.parametrize("file", FILES)
def test_the_launcher_accepts_the_file(file: str) -> None:
    assert check(read(file))["cluster_name"].startswith("plumbline")


@pytest.mark.parametrize("file", FILES)
def test_any_misspelt_key_is_rejected(file: str) -> None:
    config = read(file)
    paths = list(keys(config))
    assert len(paths) >= 8
    for path in paths:
        with pytest.raises(Exception, match=path[-1]):
            check(misspelt(config, path))


@pytest.mark.parametrize("file", FILES)
def test_all_files_install_and_start_the_same(file: str) -> None:
    """Four files would drift apart otherwise."""
    ours, first = read(file), read("cluster.yaml")

    for key in ("file_mounts", "rsync_exclude", "setup_commands"):
        assert ours[key] == first[key]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        without_labels = [re.sub(r" --labels \S+", "", command) for command in ours[key]]
        assert without_labels == first[key]


def test_every_node_installs_the_project_and_asks_for_the_token() -> None:
    prepared = check(read("cluster.yaml"))

    assert any("pip install" in command and ".[gpu]" in command for command in prepared["setup_commands"])
    assert {"~/plumbline", "~/.ray/auth_token"} <= set(prepared["file_mounts"])
    for commands in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        # The second one: jobs find `plumbline`, and what it compiles with, on their PATH.
        assert start.startswith("RAY_AUTH_MODE=token PATH=~/plumbline-venv/bin:$PATH ")


@pytest.mark.parametrize("file", FILES)
def test_the_job_server_stays_on_loopback(file: str) -> None:
    (start,) = [command for command in read(file)["head_start_ray_commands"] if "ray start" in command]

    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("file", CLOUDS)
def test_roles_have_nodes_with_their_label(file: str) -> None:
    """`rollout.labels={role: generator}` and `learner.labels={role: learner}` find nodes on every cloud."""
    config = read(file)
    types = config["available_node_types"]

    for kind in types.values():
        assert not validate_node_label_syntax(kind["labels"])
    assert {kind["labels"]["role"] for kind in types.values()} == {"head", "generator", "learner"}
    assert types[config["head_node_type"]]["labels"]["role"] == "head"
    assert min(types[role]["min_workers"] for role in ("generator", "learner")) >= 1
    assert sum(types[role]["max_workers"] for role in ("generator", "learner")) <= config["max_workers"]


@pytest.mark.parametrize("file", CLOUDS)
def test_spot_nodes_are_labelled_and_hold_generators_only(file: str) -> None:
    types = read(file)["available_node_types"].values()
    spot = [kind for kind in types if '"SPOT"' in repr(kind["node_config"]).upper().replace("'", '"')]

    assert [kind for kind in types if kind["labels"].get("ray.io/market-type") == "spot"] == spot
    assert {kind["labels"]["role"] for kind in spot} <= {"generator"}
    assert bool(spot) == (file != "cluster.yaml")


def test_the_files_describe_machines_only() -> None:
    """Hyperparameters live in a run's settings; the same run must fit any cluster."""
    settings = set(LearnerSettings.model_fields) | set(RolloutSettings.model_fields)
    for file in FILES:
        words = {key for path in keys(read(file)) for key in path}
        assert words & settings <= {"labels", "min_workers"}  # Ray's own words
