"""A reward behind a real local HTTP server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.ports import free_port
from pipelines.rewards import judge_group
from pipelines.rewards.remote import Breaker, Remote
from pipelines.types import Media, Message, Part, Prompt, Response, Rollout

Answer = tuple[int, Any, dict[str, str]]  # status, JSON-able or bytes, headers


class Server:
    """Answers with `script` in turn, the last one for ever; keeps the requests."""

    def __init__(self) -> None:
        self.script: list[Answer | Callable[[dict[str, Any]], Answer]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hang = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.headers.append(dict(self.headers))
                step = outer.script[min(len(outer.requests), len(outer.script)) - 1]
                status, content, headers = step(body) if callable(step) else step
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # a client that gave up closes its end
        self.url = f"http://127.0.0.1:{self._http.server_port}/score"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.hang.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


PICTURE = Media(kind="image", space="rgb8", payload=np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
PROMPT = Prompt(
    id="p",
    messages=(
        Message(
            role="user", parts=(Part(kind="image", digest=PICTURE.digest), Part(kind="text", text="what?"))
        ),
    ),
    gold={"answer": "7"},
)


def scored(reward: Remote, *texts: str) -> list[tuple[float | None, str | None]]:
    rollouts = [Rollout(prompt=PROMPT, response=Response(tokens=(1,), text=text)) for text in texts]
    scores = asyncio.run(judge_group(reward, rollouts, {PICTURE.digest: PICTURE}))
    return [(score.value, score.missing) for score in scores]


def ok(*scores: Any) -> Answer:
    return 200, {"scores": list(scores)}, {}


def quick(server: Server, **options: Any) -> Remote:
    return Remote(server.url, **{"timeout_s": 5.0, "backoff_s": 0.001, **options})


def test_one_request_carries_the_group(server, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    server.script = [ok(1, {"value": 0.5, "parts": {"help": 2}, "confidence": 0.25}, {"missing": "unsure"})]
    reward = quick(server, token_env="REWARD_TOKEN")
    assert scored(reward, "a", "b", "c") == [(1.0, None), (0.5, None), (None, "reward_said: unsure")]
    [request] = server.requests
    item = request["items"][1]
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert item["messages"] == [{"role": "user", "content": content}]
    assert (item["id"], item["response"], item["row"]) == ("p", "b", {"answer": "7"})
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["images"][0]))))
    assert np.array_equal(shown, PICTURE.payload)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (
        scored(quick(server, images=False), "a", "b", "c") and server.requests[1]["items"][0]["images"] == []
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_tried_again(server, status):
    server.script = [(status, {}, {"Retry-After": "0.001"}), (status, {}, {}), ok(2.0)]
    assert scored(quick(server), "a") == [(2.0, None)]
    assert len(server.requests) == 3


def test_a_refusal_is_not_tried_again(server):
    server.script = [(401, {}, {}), ok(1.0)]
    assert scored(quick(server), "a") == [(None, f"reward_http_401: {server.url}")]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"<html>", "not JSON"),
        ({"scores": [1.0]}, "expected {'scores': [2 items]}"),
        ([1.0, 2.0], "expected {'scores': [2 items]}"),
        ({"scores": "ab"}, "expected {'scores': [2 items]}"),
    ],
)
def test_an_answer_outside_the_protocol_is_missing_for_all(server, content, part):
    server.script = [(200, content, {})]
    found = scored(quick(server), "a", "b")
    assert len(server.requests) == 1
    assert all(value is None and "reward_bad_answer" in str(why) and part in str(why) for value, why in found)


def test_one_bad_item_stays_with_its_answer(server):
    bad = ["0.5", None, {"value": "x"}, {"parts": {}}, {"value": 1, "parts": [1]}, {"value": float("nan")}]
    server.script = [ok(3.0, *bad)]
    found = scored(quick(server), *"abcdefg")
    assert found[0] == (3.0, None) and all(value is None and why for value, why in found[1:])


def test_a_server_that_hangs_runs_into_the_deadline(server):
    def hang(body: dict[str, Any]) -> Answer:
        server.hang.wait(5)
        return ok(1.0)

    server.script = [hang, hang, ok(4.0)]
    assert scored(quick(server, timeout_s=0.1), "a") == [(4.0, None)]
    assert len(server.requests) == 3
    server.script = [hang]
    found = scored(quick(server, timeout_s=0.05, tries=1), "a")
    assert found == [(None, f"reward_timed_out: {server.url} after 0.05 s")]


def test_nobody_listens_and_then_nobody_is_asked():
    reward = Remote(f"http://127.0.0.1:{free_port()}", backoff_s=0.001, tries=2, failures=3, rest_s=60)
    reasons = [scored(reward, "a")[0][1] for _ in range(3)]
    assert reasons[0] is not None and reasons[0].startswith("reward_unreachable: http://127.0.0.1")
    assert reasons[1:] == [f"reward_circuit_open: {reward.url} keeps failing"] * 2


def test_the_circuit_closes_again(server):
    server.script = [(500, {}, {}), (500, {}, {}), ok(1.0)]
    reward = quick(server, tries=1, failures=2, rest_s=0.05)
    assert [scored(reward, "a")[0][0] for _ in range(2)] == [None, None]
    assert "reward_circuit_open" in str(scored(reward, "a")[0][1]) and len(server.requests) == 2
    threading.Event().wait(0.06)
    assert scored(reward, "a") == [(1.0, None)] and scored(reward, "a") == [(1.0, None)]


def test_the_breaker_lets_one_trial_through():
    now = [0.0]
    breaker = Breaker(failures=2, rest_s=10, clock=lambda: now[0])
    breaker.report(ok=False)
    assert breaker.admit()  # one failure is not enough
    breaker.report(ok=True)
    breaker.report(ok=False)
    assert breaker.admit()  # a success between them starts the count anew
    breaker.report(ok=False)
    assert not breaker.admit()
    now[0] = 10.0
    assert breaker.admit() and not breaker.admit()  # half-open: one at a time
    breaker.report(ok=False)
    assert not breaker.admit()
    now[0] = 19.9
    assert not breaker.admit()
    now[0] = 20.0
    assert breaker.admit()
    breaker.report(ok=True)
    assert breaker.admit() and breaker.admit()


def test_only_http():
    with pytest.raises(ValueError, match="file:///etc/passwd"):
        Remote("file:///etc/passwd")
