"""The servers, on which cores their processes run, and how much of a core each of them used."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.ports import free_port
from serving.checkpoint import find_servable
from serving.limits import Limits
from serving.models import EngineSettings
from serving.replicas.engine_settings import chosen, engine_config, environment

START_S = 600.0
MODEL = "measured"
ROOT = Path(__file__).parents[3]

#: vLLM's own server, Ray Serve LLM's, and ours.
SERVERS = (BARE, SERVE, OURS) = ("vLLM", "Ray Serve LLM", "plumbline")

#: What a process does, by how its command line begins or what it holds; the first that fits.
ROLES = {
    "engine": "VLLM::",
    "HTTP proxy": "ray::ProxyActor",
    "gateway": "ray::ServeReplica:plumbline:gateway",
    "Ray Serve LLM's ingress": "ray::ServeReplica:plumbline:OpenAiIngress",
    "replica": "ray::ServeReplica",
    "media decoders": "serving.decoding",
    "vLLM's HTTP server": "openai.api_server",
}
BACKGROUND = "Ray's own processes"
SPENT = r'^plumbline_request_seconds_sum\{route="/v1/chat/completions"\} (\S+)'


@dataclass(frozen=True)
class Server:
    """A running server and every process of its."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def pin(self, cores: Collection[int]) -> None:
        """Move every thread of every process; new ones follow those that start them."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, cores)

    def used(self) -> Counter[str]:
        """Microseconds of CPU since the start, by role."""
        spent: Counter[str] = Counter()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                role = _role(" ".join(process.cmdline()))
                spent[role] += round(1e6 * (times.user + times.system))
        return spent

    def inside(self) -> float:
        """Seconds that chats spent inside our gateway so far; the other servers count none."""
        text = httpx.get(f"{self.url}/metrics", verify=False).text
        found = re.search(SPENT, text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def _role(command: str) -> str:
    return next((role for role, mark in ROLES.items() if mark in command), BACKGROUND)


@contextmanager
def running(checkpoint: Path) -> Iterator[list[Server]]:
    """All of `SERVERS`, ready, with the same options of the engine; ended with the block."""
    variables = {**os.environ, **environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    variables.pop("RAY_ADDRESS", None)
    servers: list[Server] = []
    try:
        for name, command, ready in (
            (BARE, _bare(checkpoint), "/health"),
            (SERVE, ["benchmarks.serving.overhead.ray_serve_llm", *_served(checkpoint)], "/v1/models"),
            (OURS, ["pipelines.cli", "serve", *_served(checkpoint)], "/ready"),
        ):
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", str(port)],
                env=variables,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            servers.append(Server(name, f"http://127.0.0.1:{port}", process))
            _wait(servers[-1], ready)
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.wait(120)


def _served(checkpoint: Path) -> list[str]:
    return [str(checkpoint), "--name", MODEL]


def _bare(checkpoint: Path) -> list[str]:
    servable = find_servable(checkpoint)
    engine = engine_config(servable, 0, chosen(servable, EngineSettings(), Limits()))["engine_kwargs"]
    named = ["--model", str(servable.path), "--served-model-name", MODEL, "--host", "127.0.0.1"]
    quiet = ["--uvicorn-log-level", "warning"]  # as lean as it can be
    return ["vllm.entrypoints.openai.api_server", *named, *quiet, *_flags(engine)]


def _flags(arguments: dict[str, Any]) -> list[str]:
    """vLLM's arguments as its command line takes them."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _wait(server: Server, path: str) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=server.url, verify=False) as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(path).is_success:
                    return
            time.sleep(0.5)
    raise SystemExit(f"{server.name}: the server did not start; its own messages are above")
