"""A run that is given an address joins that Ray and starts none of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private import ray_constants

from actors import placement
from actors.placement import PROCESS_ENVIRONMENT, ray_session
from pipelines.settings import Settings, SettingsError

ROOT = Path(__file__).parents[2]
RUN = (
    "name=joined",
    "learner.steps=2",
    "learner.groups_per_step=4",
    "evaluation.scenes=0",
    "evaluation.questions=0",
)

# A Ray of somebody else: says where it is, waits for a line, then says which actors it has had.
HEAD = """
import json, sys
import ray
from ray._private.state import actors
from actors.placement import start_on_loopback

start_on_loopback(num_cpus=4, object_store_memory=256 * 1024**2, log_to_driver=False)
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
print("had", json.dumps([actor["ActorClassName"] for actor in actors().values()]), flush=True)
"""


def answer(head: subprocess.Popen[str], word: str) -> str:
    assert head.stdout is not None
    for line in head.stdout:
        if line.startswith(f"{word} "):
            return line.removeprefix(f"{word} ").strip()
    pytest.fail(f"the cluster ended before it said {word!r}")


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Its token is known to whoever inherits this environment."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=environment, stdin=pipe, stdout=pipe, text=True
    )
    try:
        yield process
    finally:
        process.communicate(timeout=60)  # the end of its input ends it


@pytest.mark.parametrize("how", ["ray_address", "RAY_ADDRESS"])
def test_an_address_means_no_ray_of_our_own(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(placement.ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(placement.ray, "shutdown", lambda: None)
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = Settings()
    if how == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    else:
        settings = Settings(ray_address="10.0.0.1:6379")

    with ray_session(settings):
        pass

    [options] = calls
    assert options["address"] == "10.0.0.1:6379"
    assert not {"num_cpus", "num_gpus", "object_store_memory", "_node_ip_address"} & set(options)
    assert options["runtime_env"]["env_vars"] == {**PROCESS_ENVIRONMENT, "VLLM_LOGGING_LEVEL": "DEBUG"}
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"  # or ray.init refuses what a job has set too


def test_a_cluster_that_does_not_answer_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError("InvalidAuthToken: missing")

    monkeypatch.setattr(placement.ray, "init", refuse)
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")

    with (
        pytest.raises(SettingsError, match=r"10\.0\.0\.1:6379: .*InvalidAuthToken.*RAY_AUTH_MODE=token"),
        ray_session(Settings(ray_address="10.0.0.1:6379")),
    ):
        pass


def test_a_run_with_an_address_happens_on_that_cluster(
    head: subprocess.Popen[str], align: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = answer(head, "at")
    # As in `start_on_loopback`: else Ray would replace the address by the machine's own.
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")

    run = align(tmp_path / "joined", *RUN, f"output={tmp_path}", f"ray_address={address}")

    assert (run.summary["status"], run.summary["steps"]) == ("finished", 2)
    assert run.summary["audit"]["violated"] == []
    assert head.stdin is not None
    head.stdin.write("\n")
    head.stdin.flush()
    had = json.loads(answer(head, "had"))  # and it is still there: joining a cluster does not end it
    for role in ("Generator", "Scorer", "Ledger", "Publisher", "RayTrainWorker"):
        assert any(role in name for name in had), (role, had)
