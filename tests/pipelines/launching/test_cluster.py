"""Submitting to a real job server on loopback that asks for a token.

The cluster's `plumbline` is a stand-in that says how it was called and ends as its arguments tell it: what is
tested is the way there and back, not a run.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.ports import free_port

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120

HEAD = """
import os, sys
import ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray would replace the loopback address
ray.init(num_cpus=1, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
         _node_ip_address="127.0.0.1", object_store_memory=128 * 1024**2, log_to_driver=False)
print("up", flush=True)
sys.stdin.readline()
"""

PLUMBLINE = f"""#!{sys.executable}
import json, os, sys, time
print("called", json.dumps([sys.argv[1:], sorted(os.listdir()), os.environ["RAY_JOB_STOP_WAIT_TIME_S"]]))
[status] = [int(a.removeprefix("seed=")) for a in sys.argv if a.startswith("seed=")]
while status == 99:
    time.sleep(0.1)
sys.exit(status)
"""

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of the job server, the environment of somebody who knows its token)."""
    folder = tmp_path_factory.mktemp("cluster")
    stand_in = folder / "plumbline"
    stand_in.write_text(PLUMBLINE)
    stand_in.chmod(0o755)
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    known |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    head = {
        **known,
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    port = free_port()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)], env=head, stdin=pipe, stdout=pipe, text=True
    )
    try:
        assert process.stdout is not None
        if not any(line.startswith("up") for line in process.stdout):
            pytest.fail("the cluster did not come up")
        yield f"http://127.0.0.1:{port}", known
    finally:
        process.communicate(timeout=60)  # the end of its input ends it


@pytest.fixture
def launch(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> Launch:
    """`plumbline launch` of a small run in a folder of its own."""
    address, environment = cluster
    folder = tmp_path / "my run"  # a name that needs quotes
    folder.mkdir()
    (folder / "run.yaml").write_text("name: small\n")

    def run(*arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", "launch", str(folder / "run.yaml")]
        return subprocess.run(
            [*command, "output=/shared/runs", "--address", address, *arguments],
            env={**environment, "RAY_AUTH_TOKEN": token or environment["RAY_AUTH_TOKEN"]},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    return run


def test_the_run_arrives_with_its_folder_and_its_status_comes_back(launch: Launch) -> None:
    done = launch("seed=7", 'method={beta: "0.2"}', "--follow", "--resume")

    assert done.returncode == 7, done.stdout + done.stderr
    said = next(line for line in done.stdout.splitlines() if line.startswith("called "))
    arguments, files, patience = json.loads(said.removeprefix("called "))
    assert arguments == [
        "align",
        "run.yaml",
        "output=/shared/runs",
        "seed=7",
        'method={beta: "0.2"}',
        "--resume",
    ]
    assert files == ["run.yaml"]
    assert int(patience) > 60  # stop_grace_s


def test_a_run_that_finishes_means_status_0(launch: Launch) -> None:
    assert launch("seed=0", "--follow").returncode == 0


def test_a_wrong_token_is_refused(launch: Launch) -> None:
    wrong = secrets.token_hex(32)

    done = launch("seed=0", "--follow", token=wrong)

    assert done.returncode == 1
    assert "called" not in done.stdout
    assert wrong not in done.stdout + done.stderr


def test_without_follow_it_returns_and_says_how_to_stop_the_run(
    launch: Launch, cluster: tuple[str, dict[str, str]]
) -> None:
    done = launch("seed=99")  # runs until it is stopped

    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster[1]["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
    [stop] = [line.removeprefix("stop: ") for line in done.stdout.splitlines() if line.startswith("stop: ")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**cluster[1], "PATH": path}
    stopped = subprocess.run(stop, shell=True, env=environment, capture_output=True, text=True)
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
