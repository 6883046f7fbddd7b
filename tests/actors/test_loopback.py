"""The Ray that a run starts is closed to everybody else: no address but loopback, and a token of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
WITHOUT = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")

# Two ranks meet as the learner does, and all that this process tree listens on is noted. Then somebody who
# does not know the token tries to join.
SCRIPT = """
import os, subprocess, sys
import psutil, ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from actors.placement import start_on_loopback
from actors.rendezvous import AtOneAddress

def ranks():
    import torch
    import torch.distributed as dist
    total = torch.ones(1)
    dist.all_reduce(total)
    driver, mine = psutil.Process(int(os.environ["DRIVER"])), set()
    mine = {process.pid for process in (driver, *driver.children(recursive=True))}
    heard = {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in mine}
    dist.barrier()
    if dist.get_rank() == 0:
        with open("heard.txt", "w") as file:
            file.write(repr((sorted(heard), total.item())))

JOIN = '''
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
'''

os.environ["DRIVER"] = str(os.getpid())
start_on_loopback(num_cpus=3, object_store_memory=100 * 1024**2, log_to_driver=False)
folder = os.getcwd()
TorchTrainer(
    lambda: (os.chdir(folder), ranks()),
    torch_config=AtOneAddress(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(storage_path=folder),
).fit()
stranger = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
tried = subprocess.run([sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address],
                       env=stranger, capture_output=True, text=True)
print("said", repr((open("heard.txt").read(), os.environ["RAY_AUTH_TOKEN"], tried.returncode, tried.stderr)))
"""


@dataclass(frozen=True)
class Seen:
    addresses: list[str]
    total: float  # what the ranks' all-reduce gave
    token: str
    strangers_status: int
    strangers_error: str
    home: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    environment = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    assert said, done.stdout + done.stderr
    heard, token, status, error = ast.literal_eval(said[0].removeprefix("said "))
    addresses, total = ast.literal_eval(heard)
    return Seen(addresses, total, token, status, error, home)


def test_nothing_listens_beyond_loopback(seen: Seen) -> None:
    assert seen.total == 2.0
    assert seen.addresses
    assert {address.removeprefix("::ffff:") for address in seen.addresses} <= {"127.0.0.1", "::1"}


def test_who_does_not_know_the_token_cannot_join(seen: Seen) -> None:
    assert len(seen.token) == 64
    assert seen.strangers_status != 0
    assert "token" in seen.strangers_error.lower()


def test_the_token_is_not_left_in_the_home_directory(seen: Seen) -> None:
    assert not (seen.home / ".ray" / "auth_token").exists()
