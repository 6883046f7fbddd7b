"""A real endpoint in a process of its own: `plumbline serve`, as people start it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.ports import free_port

ROOT = Path(__file__).parents[2]
PLUMBLINE = (sys.executable, "-m", "pipelines.cli")
START_TIMEOUT_S = 420
REQUEST_TIMEOUT_S = 120


@dataclass
class Endpoint:
    process: subprocess.Popen[str]
    port: int
    output: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The name of its only model."""
        (name,) = (found[1] for line in self.output if (found := re.match(r"serving (\S+) at http", line)))
        return name

    def request(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def client(self) -> openai.OpenAI:
        """The official client, which tries nothing twice."""
        return openai.OpenAI(**self._official)

    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._official)

    @property
    def _official(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/v1"
        return {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": REQUEST_TIMEOUT_S}

    def chat(self, *content: dict[str, Any], model: str | None = None) -> tuple[int, dict[str, Any]]:
        message = {"role": "user", "content": list(content)}
        body = {"model": model or self.model, "messages": [message], "max_tokens": 48, "temperature": 0}
        return self.request("/v1/chat/completions", body)


@contextmanager
def serving(*arguments: str, errors: Path) -> Iterator[Endpoint]:
    """Up until the end of the block; what it writes to stderr goes to the file `errors`."""
    port = free_port()
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [*PLUMBLINE, "serve", *arguments, "--port", str(port)],
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    started = Endpoint(process=process, port=port)
    watchdog = threading.Timer(START_TIMEOUT_S, process.terminate)
    watchdog.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            started.output.append(line)
            if line.startswith("curl "):
                break
        watchdog.cancel()
        if not started.output or not started.output[-1].startswith("curl "):
            pytest.fail(f"the endpoint did not start: {started.output}\n{errors.read_text()[-4000:]}")
        yield started
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.terminate()
            process.wait(60)
