"""One real endpoint (Ray Serve, vLLM on CPU) for all tests of this file: it takes over a minute to start."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.worlds.glyphs import Glyphs
from pipelines.worlds.glyphs.captions import read_caption
from serving.checkpoint import find_servable
from serving.registry.registry import Registry

ROOT = Path(__file__).parents[2]
PLUMBLINE = (sys.executable, "-m", "pipelines.cli")
START_TIMEOUT_S = 420
REQUEST_TIMEOUT_S = 120

pytestmark = pytest.mark.timeout(1500)  # the first test may wait for the shared run and for the endpoint


@dataclass
class Endpoint:
    process: subprocess.Popen[str]
    port: int
    registry: Path
    output: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
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
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=REQUEST_TIMEOUT_S)

    def chat(self, *content: dict[str, Any], model: str | None = None) -> tuple[int, dict[str, Any]]:
        message = {"role": "user", "content": list(content)}
        body = {"model": model or self.model, "messages": [message], "max_tokens": 48, "temperature": 0}
        return self.request("/v1/chat/completions", body)


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


QUESTION = {"type": "text", "text": "describe the image ."}


@pytest.fixture(scope="module")
def png() -> str:
    """A held-out scene of the world that the served model was trained in."""
    world = Glyphs()
    (row,) = world.rows("heldout", 1, 0, "caption")
    buffer = io.BytesIO()
    Image.fromarray(world.image(row)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def other_checkpoint(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    promoted = tmp_path_factory.mktemp("other") / "model"
    source = find_servable(served_checkpoint).path
    shutil.copytree(source, promoted, ignore=shutil.ignore_patterns("manifest.json", "learner"))
    (weights,) = promoted.glob("*.safetensors")
    moved = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(moved, weights, metadata={"format": "pt"})
    return promoted


@pytest.fixture(scope="module")
def endpoint(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    registry = tmp_path_factory.mktemp("registry")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    errors = tmp_path_factory.mktemp("serve") / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [*PLUMBLINE, "serve", str(served_checkpoint), "--port", str(port), f"registry={registry}"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    started = Endpoint(process=process, port=port, registry=registry)
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


def test_an_image_in_the_request_is_captioned(endpoint: Endpoint, png: str) -> None:
    status, answer = endpoint.chat(picture(png), QUESTION)

    assert status == 200, answer
    caption = answer["choices"][0]["message"]["content"]
    reading = read_caption(caption)
    assert reading.mentions and not reading.malformed, caption
    image_tokens = 16  # of 64x64 pixels
    assert answer["usage"]["prompt_tokens"] > image_tokens + len(QUESTION["text"].split())


def test_the_image_changes_what_the_model_says(endpoint: Endpoint, png: str) -> None:
    blank = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(blank, "PNG")
    other = "data:image/png;base64," + base64.b64encode(blank.getvalue()).decode()
    body = {"model": endpoint.model, "max_tokens": 1, "temperature": 0, "logprobs": True}

    def logprob(url: str) -> float:
        messages = [{"role": "user", "content": [picture(url), QUESTION]}]
        status, answer = endpoint.request("/v1/chat/completions", {**body, "messages": messages})
        assert status == 200, answer
        return answer["choices"][0]["logprobs"]["content"][0]["logprob"]

    assert logprob(png) == pytest.approx(logprob(png), abs=1e-4)
    assert logprob(png) != pytest.approx(logprob(other), abs=1e-4)


def test_the_printed_curl_command_is_ready_to_paste(endpoint: Endpoint) -> None:
    command = shlex.split(endpoint.output[-1])

    assert command[1] == f"http://127.0.0.1:{endpoint.port}/v1/chat/completions"
    status, answer = endpoint.request("/v1/chat/completions", json.loads(command[command.index("-d") + 1]))
    assert status == 200, answer
    assert any(f" at http://127.0.0.1:{endpoint.port}/v1 " in line for line in endpoint.output)


def test_the_model_list_has_the_printed_name(endpoint: Endpoint) -> None:
    status, answer = endpoint.request("/v1/models")

    assert status == 200
    assert [model["id"] for model in answer["data"]] == [endpoint.model]


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,bm90IGFuIGltYWdl",  # base64 of text
        "http://127.0.0.1:9/picture.png",  # nothing is fetched for a client
    ],
)
def test_an_unusable_image_is_the_clients_error(endpoint: Endpoint, url: str, png: str) -> None:
    status, answer = endpoint.chat(picture(url), QUESTION)

    assert 400 <= status < 500, answer
    assert endpoint.chat(picture(png), QUESTION)[0] == 200, "the engine must survive a bad request"


def test_a_file_of_the_server_is_not_read(endpoint: Endpoint, png: str) -> None:
    status, answer = endpoint.chat(picture("file:///etc/hostname"), QUESTION)

    assert status == 400 and "choices" not in answer
    assert endpoint.chat(picture(png), QUESTION)[0] == 200


def test_an_unknown_model_is_not_found(endpoint: Endpoint) -> None:
    assert endpoint.chat(QUESTION, model="somebody-else")[0] == 404


def test_serves_control_routes_are_not_reachable(endpoint: Endpoint) -> None:
    for path in ("/-/routes", "/-/healthz", "/docs", "/v1/load_lora_adapter", "/collective_rpc"):
        assert endpoint.request(path)[0] == 404, path


def test_the_openai_client_reads_a_stream_that_names_its_version(endpoint: Endpoint, png: str) -> None:
    content: Any = [picture(png), QUESTION]
    with endpoint.client() as client:
        chunks = list(
            client.chat.completions.create(
                model=endpoint.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=16,
                temperature=0,
                stream=True,
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    promoted = Registry(endpoint.registry).promoted()
    assert promoted is not None and {chunk.system_fingerprint for chunk in chunks} == {promoted.id}


def test_the_page_and_the_history_are_there(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/", timeout=30) as answer:
        assert b"<html" in answer.read()
    status, versions = endpoint.request("/v1/versions")
    assert status == 200 and [act["act"] for act in versions["history"]][:2] == ["registered", "promoted"]
    assert str(endpoint.registry) not in json.dumps(versions)


def test_a_promotion_by_another_process_swaps_under_load_without_a_failed_request(
    endpoint: Endpoint, other_checkpoint: Path
) -> None:
    """Requests go on all the while, none is tried twice, and each is of one version."""
    before = Registry(endpoint.registry).promoted()
    assert before is not None
    seen: list[str] = []
    failures: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with endpoint.client() as client:
            while not over.is_set():
                try:
                    answer = client.chat.completions.create(
                        model=endpoint.model,
                        messages=[{"role": "user", "content": QUESTION["text"]}],
                        max_tokens=8,
                    )
                    seen.append(str(answer.system_fingerprint))
                except openai.OpenAIError as error:
                    failures.append(str(error))

    def wait_for(version: str) -> None:
        until = time.monotonic() + 120
        while seen[-1:] != [version]:
            assert time.monotonic() < until, (version, seen[-3:], failures[:3])
            time.sleep(0.1)

    def command(*arguments: str) -> None:
        line = [*PLUMBLINE, *arguments, "--registry", str(endpoint.registry)]
        subprocess.run(line, check=True, cwd=ROOT, timeout=300)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        wait_for(before.id)
        command("promote", str(other_checkpoint), "--force", "--reason", "a test")
        promoted = Registry(endpoint.registry).promoted()
        assert promoted is not None and promoted.id != before.id
        wait_for(promoted.id)
        command("rollback", "--reason", "a test")
        wait_for(before.id)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert failures == []
    assert set(seen) == {before.id, promoted.id}


def test_the_endpoint_listens_on_loopback_only(endpoint: Endpoint) -> None:
    listening = [
        connection.laddr.ip
        for process in psutil.Process(endpoint.process.pid).children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == endpoint.port
    ]

    assert listening and set(listening) == {"127.0.0.1"}


def test_sigterm_ends_it_and_leaves_no_process(endpoint: Endpoint) -> None:
    """The last test of this file, for it ends the endpoint."""
    started = psutil.Process(endpoint.process.pid).children(recursive=True)
    assert any(re.search("VLLM|EngineCore", process.name()) for process in started), "no engine among them"

    endpoint.process.send_signal(signal.SIGTERM)

    assert endpoint.process.wait(120) == 128 + signal.SIGTERM
    assert [process for process in started if process.is_running()] == []
