"""The KubeRay manifests, offline: every key is known, and token, GPUs, grace and storage are as promised."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from pipelines.settings import Settings, load

ROOT = Path(__file__).parents[2]
FILES = ("raycluster", "rayjob", "rayservice", "shared-volume")
CLUSTERS = {"raycluster": (), "rayjob": ("rayClusterSpec",), "rayservice": ("rayClusterConfig",)}
# Names below these are the user's or the device plugin's.
FREE = ("labels", "rayStartParams", "limits", "requests")


def cluster_of(manifests: Any, name: str) -> Any:
    spec = manifests.check(manifests.written(name)).spec
    for field in CLUSTERS[name]:
        spec = getattr(spec, field)
    return spec


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        if isinstance(key, str):
            yield (*path, key)
        if key not in FREE:
            yield from keys(below, (*path, key))


def misspelt(written: Any, path: tuple[Any, ...]) -> Any:
    """A copy in which the key at the end of `path` has another letter."""
    changed = copy.deepcopy(written)
    section = changed
    for key in path[:-1]:
        section = section[key]
    section[f"{path[-1]}x"] = section.pop(path[-1])
    return changed


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_has_only_keys_that_exist_and_each_misspelt_one_is_refused(
    name: str, manifests: Any
) -> None:
    written = manifests.written(name)
    manifests.check(written)
    paths = list(keys(written))
    assert len(paths) >= 8
    for path in paths:
        with pytest.raises(ValidationError):
            manifests.check(misspelt(written, path))


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("workerGroupSpecs", 0, "replicas"), 9),  # above its maximum
        (("workerGroupSpecs", 0, "minReplicas"), "1"),
        (("authOptions", "mode"), "tokens"),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "30 GB"),
        (("headGroupSpec", "template", "spec", "containers", 0, "volumeMounts", 0, "name"), "share"),
        (("headGroupSpec", "labels"), {"role/": "head"}),
    ],
)
def test_a_wrong_value_is_refused(path: tuple[Any, ...], wrong: Any, manifests: Any) -> None:
    written = manifests.written("raycluster")
    section = written["spec"]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = wrong

    with pytest.raises(ValidationError):
        manifests.check(written)


def objects(written: Any, name: str) -> list[dict[str, Any]]:
    """What Kubernetes itself is given: the volume's claim, or a pod of each group."""
    if name == "shared-volume":
        return [written]
    spec = written["spec"]
    for field in CLUSTERS[name]:
        spec = spec[field]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [{"apiVersion": "v1", "kind": "Pod"} | group["template"] for group in groups]


@pytest.mark.parametrize("version", ["1.28", "1.32", "1.37"])
@pytest.mark.parametrize("name", FILES)
def test_kubernetes_own_schemas_take_every_pod_and_the_volume(
    name: str, version: str, manifests: Any
) -> None:
    for each in objects(manifests.written(name), name):
        assert kubernetes_validate.validate(each, version, strict=True) == version


@pytest.mark.parametrize("name", ["raycluster", "shared-volume"])
def test_kubernetes_own_schemas_refuse_each_misspelt_key(name: str, manifests: Any) -> None:
    first = objects(manifests.written(name), name)[0]
    paths = [path for path in keys(first) if path[-1] not in ("apiVersion", "kind")]
    assert len(paths) >= 6
    for path in paths:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(misspelt(first, path), "1.37", strict=True)


def test_the_job_brings_the_cluster_that_also_stands_alone(manifests: Any) -> None:
    job, alone = manifests.written("rayjob"), manifests.written("raycluster")

    assert job["spec"]["rayClusterSpec"] == alone["spec"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_asks_for_a_token_and_is_closed_to_the_outside(name: str, manifests: Any) -> None:
    cluster = cluster_of(manifests, name)

    assert cluster.authOptions.mode == "token"
    assert cluster.headGroupSpec.serviceType == "ClusterIP"
    assert not cluster.headGroupSpec.enableIngress


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_ray_of_the_manifest_is_the_one_that_is_installed(name: str, manifests: Any) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [re.sub(r".*==", "", each) for each in dependencies if each.startswith("ray[")]

    assert cluster_of(manifests, name).rayVersion == pinned


@pytest.mark.parametrize("name", CLUSTERS)
def test_workers_have_the_gpus_and_the_head_has_none(name: str, manifests: Any) -> None:
    cluster = cluster_of(manifests, name)
    (head,) = cluster.headGroupSpec.template.spec.containers

    assert "nvidia.com/gpu" not in head.resources.limits
    for group in cluster.workerGroupSpecs:
        (container,) = group.template.spec.containers
        assert container.resources.limits["nvidia.com/gpu"] == "1"
        assert container.resources.limits == container.resources.requests


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_has_the_shared_volume_and_time_to_end(name: str, manifests: Any) -> None:
    cluster = cluster_of(manifests, name)
    claim = manifests.check(manifests.written("shared-volume"))
    pods = [cluster.headGroupSpec.template.spec, *(g.template.spec for g in cluster.workerGroupSpecs)]

    assert claim.spec.accessModes == ["ReadWriteMany"]
    for pod in pods:
        assert [volume.persistentVolumeClaim.claimName for volume in pod.volumes] == [claim.metadata.name]
        assert [mount.mountPath for mount in pod.containers[0].volumeMounts] == ["/shared"]
        assert pod.terminationGracePeriodSeconds > Settings().stop_grace_s


def test_groups_carry_the_labels_that_the_job_asks_for(manifests: Any) -> None:
    job = manifests.check(manifests.written("rayjob")).spec
    command, verb, _, *overrides = shlex.split(job.entrypoint)
    settings = load(None, overrides)  # of the manifest alone, without the run's file

    assert (command, verb) == ("plumbline", "align")
    groups = {group.groupName: group for group in job.rayClusterSpec.workerGroupSpecs}
    assert groups["learner"].labels == settings.learner.labels == {"role": "learner"}
    assert groups["generator"].labels == settings.rollout.labels == {"role": "generator"}
    assert job.rayClusterSpec.enableInTreeAutoscaling
    assert groups["generator"].minReplicas < groups["generator"].maxReplicas
    assert Path(settings.output).is_relative_to("/shared")


def test_a_stopped_job_has_time_to_save(manifests: Any) -> None:
    job = manifests.check(manifests.written("rayjob")).spec
    environment = yaml.safe_load(job.runtimeEnvYAML)["env_vars"]

    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > Settings().stop_grace_s
    assert environment["PYTHONPATH"] == str(Path(shlex.split(job.entrypoint)[2]).parent)
    # The head hands the signal to the run before Ray ends; the pattern must not name the shell that looks.
    (head,) = job.rayClusterSpec.headGroupSpec.template.spec.containers
    script = head.lifecycle.preStop.exec.command[-1]
    (pattern,) = set(re.findall(r"-f '(.*?)'", script))
    assert re.search(pattern, "/home/plumbline/venv/bin/python plumbline align run.yaml")
    assert not re.search(pattern, script)


def test_the_service_serves_through_our_application(manifests: Any) -> None:
    """Ray accepts unknown keys here, so they are compared with its fields."""
    config = yaml.safe_load(manifests.check(manifests.written("rayservice")).spec.serveConfigV2)
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)


def test_the_services_import_path_and_arguments_build_an_application(
    manifests: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._common.utils import import_attr
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.deployment import Application

    import serving.app

    built = object.__new__(Application)
    asked: list[Any] = []
    monkeypatch.setattr(serving.app, "find", lambda *wanted: asked.append(wanted) or [])
    monkeypatch.setattr(serving.app, "_conductor", lambda models, **options: None)
    monkeypatch.setattr(serving.app, "_built", lambda *arguments: built)
    config = yaml.safe_load(manifests.written("rayservice")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    builder = import_attr(application["import_path"])

    assert call_user_app_builder_with_args_if_necessary(builder, application["args"]) is built
    ((target, settings, _),) = asked
    assert target == Path("/shared/runs/glyphs") and settings.replicas.gpus == 1
    with pytest.raises(ValidationError, match="gpu"):
        call_user_app_builder_with_args_if_necessary(builder, {"target": "/m", "gpu": 1})
    with pytest.raises(ValidationError, match="gpu"):
        call_user_app_builder_with_args_if_necessary(builder, {"target": "/m", "settings": {"gpu": 1}})
