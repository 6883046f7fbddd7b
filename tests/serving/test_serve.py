"""One real endpoint (Ray Serve, vLLM on CPU) for all tests of this file: it takes over a minute to start."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipelines.worlds.glyphs import Glyphs
from pipelines.worlds.glyphs.captions import read_caption
from serving.checkpoint import find_servable
from serving.registry.registry import Registry
from tests.serving import harness
from tests.serving.browser import Tab
from tests.serving.endpoint import PLUMBLINE, ROOT, Endpoint, serving

pytestmark = pytest.mark.timeout(1500)  # the first test may wait for the shared run and for the endpoint


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


QUESTION = {"type": "text", "text": "describe the image ."}


def drawn(row: Any) -> str:
    """The picture of a scene, as clients send it."""
    buffer = io.BytesIO()
    Image.fromarray(Glyphs().image(row)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def png() -> str:
    """A held-out scene of the world that the served model was trained in."""
    (row,) = Glyphs().rows("heldout", 1, 0, "caption")
    return drawn(row)


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
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def endpoint(
    served_checkpoint: Path, registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    errors = tmp_path_factory.mktemp("serve") / "stderr"
    with serving(str(served_checkpoint), f"registry={registry}", errors=errors) as started:
        yield started


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


def test_the_openai_client_reads_a_stream_that_names_its_version(
    endpoint: Endpoint, registry: Path, png: str
) -> None:
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
    promoted = Registry(registry).promoted()
    assert promoted is not None and {chunk.system_fingerprint for chunk in chunks} == {promoted.id}


def test_the_page_and_the_history_are_there(endpoint: Endpoint, registry: Path) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/", timeout=30) as answer:
        assert b"<html" in answer.read()
    status, versions = endpoint.request("/v1/versions")
    assert status == 200 and [act["act"] for act in versions["history"]][:2] == ["registered", "promoted"]
    assert str(registry) not in json.dumps(versions)


def test_the_page_chats_about_a_picture(endpoint: Endpoint, png: str, tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    file.write_bytes(base64.b64decode(png.partition(",")[2]))
    tab.open(f"http://127.0.0.1:{endpoint.port}/")
    tab.attach("#chat input[type=file]", file)
    tab.wait("document.querySelector('#chat .thumbnail img')?.naturalWidth > 0")
    tab.ask("#chat", QUESTION["text"])
    tab.answered()
    assert read_caption(tab.text(".answer .text")).mentions
    assert re.search("v-[0-9a-f]{12}", tab.text(".answer footer"))
    assert tab.console == []


def test_loglikelihoods_are_those_of_the_checkpoint(endpoint: Endpoint, served_checkpoint: Path) -> None:
    """As lm-eval asks for them, in one batch of token ids; the end of text alone is a context as well."""
    checkpoint = find_servable(served_checkpoint).path
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    contexts = ("describe the image .", "is there a red two ?", "a green three top left and")
    endings = (
        "yes",
        "no",
        "a blue eight top right .",
        "a red seven bottom left and a red one bottom right .",
    )
    texts = [(context, ending) for context in contexts for ending in endings]
    pairs = [tuple(tokenizer(text)["input_ids"] for text in pair) for pair in texts]
    pairs += [([tokenizer.eos_token_id], tokenizer(ending)["input_ids"]) for ending in endings]
    lengths = [len(context) for context, _ in pairs]

    status, answer = endpoint.request(
        "/v1/completions", harness.asked(endpoint.model, [context + ending for context, ending in pairs])
    )

    assert status == 200, answer
    got, expected = harness.read(answer, lengths), harness.computed(checkpoint, pairs)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    values, others = ([value for value, _ in each] for each in (got, expected))
    assert values == pytest.approx(others, abs=1e-3)
    for first in range(0, len(pairs), len(endings)):
        ranked = [sorted(range(len(endings)), key=each[first:].__getitem__) for each in (values, others)]
        assert ranked[0] == ranked[1]
    status, answer = endpoint.request(
        "/v1/completions", harness.asked(endpoint.model, [" ".join(pair) for pair in texts])
    )
    assert status == 200, answer
    as_text = [value for value, _ in harness.read(answer, lengths[: len(texts)])]
    assert as_text == pytest.approx(values[: len(texts)], abs=1e-4)


def test_special_tokens_among_token_ids_are_refused(endpoint: Endpoint, served_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(find_servable(served_checkpoint).path)
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for prompt in ([placeholder], [[8, 9], [8, placeholder]]):
        status, answer = endpoint.request("/v1/completions", harness.asked(endpoint.model, prompt))
        assert (status, answer["error"]["code"]) == (400, "special_token")


def test_each_of_80_chats_at_once_is_about_its_own_picture(endpoint: Endpoint) -> None:
    """As lmms-eval's asynchronous models send POPE and captions; the same questions one by one."""
    world = Glyphs()
    captions = list(world.rows("heldout", 40, 0, "caption"))
    rows = [*captions, *world.rows("heldout", 40, 0, "adversarial")]

    async def ask(client: openai.AsyncOpenAI, row: Any) -> str:
        content: Any = [picture(drawn(row)), row["prompt"][0]["content"][1]]
        message: Any = {"role": "user", "content": content}
        answer = await client.chat.completions.create(
            model=endpoint.model, messages=[message], max_tokens=32, temperature=0
        )
        return answer.choices[0].message.content or ""

    async def story() -> tuple[list[str], list[str]]:
        async with endpoint.asynchronous() as client:
            together = await asyncio.gather(*(ask(client, row) for row in rows))
            return together, [await ask(client, row) for row in rows]

    together, alone = asyncio.run(story())
    assert together == alone

    def value(shift: int) -> float:
        return sum(
            world.verify(captions[(i + shift) % len(captions)], together[i])["value"]
            for i in range(len(captions))
        )

    assert value(0) > max(value(1), value(-1)) + len(captions) / 2, "captions fit others' pictures"


def test_a_promotion_by_another_process_swaps_under_load_without_a_failed_request(
    endpoint: Endpoint, registry: Path, other_checkpoint: Path
) -> None:
    """Requests go on all the while, none is tried twice, and each is of one version."""
    before = Registry(registry).promoted()
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
        line = [*PLUMBLINE, *arguments, "--registry", str(registry)]
        subprocess.run(line, check=True, cwd=ROOT, timeout=300)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        wait_for(before.id)
        command("promote", str(other_checkpoint), "--force", "--reason", "a test")
        promoted = Registry(registry).promoted()
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
