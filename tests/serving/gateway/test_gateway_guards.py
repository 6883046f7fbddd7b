"""What every request passes before anything is asked: ids, keys, names, bodies."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.gateway.stub import StubBackend
from tests.serving.gateways import HELLO, OneKey, backend, gateway, http, post, run

CHAT = "/v1/chat/completions"


def send_raw(content: bytes, settings: dict[str, Any] | None = None, **headers: str) -> Any:
    async def sent() -> Any:
        async with http(
            gateway(backend(), settings), **{"content-type": "application/json", **headers}
        ) as ask:
            return await ask.post(CHAT, content=content)

    return run(sent)


def message(text: str) -> bytes:
    """A chat whose only text is this piece of JSON."""
    return b'{"model":"stub","messages":[{"role":"user","content":' + text.encode() + b"}]}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON at line 1 column 2"),
        (b"[]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b"\xef\xbb\xbf{}", "not JSON"),  # a byte order mark
        ('{"a": 1}'.encode("utf-16"), "expected UTF-8"),
        (message('"a\\u0000b"'), "NUL"),
        (b'{"model":"stub","a\\u0000":1}', "NUL"),
        (message('"\\ud800"'), "surrogate"),
        (b'{"model":"stub","user":"\\udfff"}', "user: text holds half of a surrogate pair"),
        (b'{"model":"stub","model":"stub"}', 'the key "model" occurs twice'),
        (b'{"model":"stub","temperature":NaN}', "NaN is not JSON"),
        (b'{"model":"stub","temperature":-Infinity}', "-Infinity is not JSON"),
        (b'{"model":"stub","temperature":1e400}', "temperature: expected a finite number"),
        (b'{"model":"stub","seed":' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deeply; at most 32"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 200_000 + b"[]]}", "at most 250000 JSON values"),
    ],
)
def test_json_that_no_model_must_see(content: bytes, says: str) -> None:
    answer = send_raw(content)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert send_raw(message('"\\ud83d\\ude00"')).status_code == 200


@pytest.mark.parametrize("header", [{"content-type": "text/plain"}, {"content-encoding": "gzip"}])
def test_only_plain_json_is_read(header: dict[str, str]) -> None:
    assert send_raw(message('"a"'), **header).status_code == 415


def test_a_large_body_is_refused_by_its_announced_size_and_by_its_real_one() -> None:
    announced = send_raw(b"x" * (2**20 + 1), {"limits": {"body_mib": 1}})
    assert announced.status_code == 413 and "at most 1 MiB" in announced.json()["error"]["message"]
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b"x" * 2**16

    async def streamed() -> Any:
        app = gateway(backend(), {"limits": {"body_mib": 1}})
        async with http(app, **{"content-type": "application/json"}) as ask:
            return await ask.post(CHAT, content=pieces())

    assert run(streamed).status_code == 413
    assert read == 17  # the first piece over the limit is the last that is read


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def sent() -> Any:
        app = gateway(backend(), {"limits": {"body_timeout_s": 0.05}})
        async with http(app, **{"content-type": "application/json"}) as ask:
            return await ask.post(CHAT, content=never())

    answer = run(sent)
    assert answer.status_code == 408 and answer.json()["error"]["code"] == "request_timeout"


def test_bodies_of_all_requests_together_are_bounded() -> None:
    answer = send_raw(b"x" * 2**21, {"load": {"bodies_mib": 1}})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_ids_are_the_clients_if_they_are_sane() -> None:
    async def ids() -> list[str]:
        async with http(gateway(backend())) as ask:
            given = ["mine-1", "x" * 65, "a b", "../x", "a;b", ""]
            return [
                (await ask.get("/health", headers={"x-request-id": i})).headers["x-request-id"] for i in given
            ]

    mine, *others = run(ids)
    assert mine == "mine-1"
    assert all(len(one) == 32 and one.isalnum() for one in others)


EVERY_ROUTE = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/stub"),
    ("GET", "/v1/versions"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "//health"),
    ("GET", "/Health"),
    ("GET", "/health/"),
    ("POST", "/pause"),
    ("POST", "/update_weights"),
    ("POST", "/invocations"),
]


@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer sk-wrong")],
        [("authorization", "sk-right")],
        [("Authorization", "bearer sk-right ")],
        [("authorization", "Bearer sk-right"), ("authorization", "Bearer sk-wrong")],
        [("x-api-key", "sk-right")],
    ],
)
def test_every_route_needs_a_key(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    async def ask() -> Any:
        async with http(gateway(backend(), keys=OneKey())) as connection:
            url = f"http://127.0.0.1:8000{path}"
            return await connection.request(method, url, headers=headers, content=b"not read")

    answer = run(ask)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert "sk-" not in answer.text


def test_a_key_in_the_url_is_refused_even_beside_a_right_one() -> None:
    async def ask() -> Any:
        async with http(gateway(backend(), keys=OneKey()), authorization="Bearer sk-right") as connection:
            return await connection.get("/v1/models?api_key=sk-right")

    answer = run(ask)
    assert answer.status_code == 401 and "sk-right" not in answer.text


def test_health_needs_no_key_and_a_key_opens_the_rest() -> None:
    async def ask() -> list[int]:
        app = gateway(backend(), keys=OneKey())
        async with http(app) as stranger, http(app, authorization="Bearer sk-right") as friend:
            open_ones = [(await stranger.get(path)).status_code for path in ("/health", "/ready")]
            chat = await friend.post(CHAT, json=HELLO)
            return [*open_ones, (await friend.get("/v1/models")).status_code, chat.status_code]

    assert run(ask) == [200] * 4


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("localhost:8000", 200), ("[::1]:8000", 200), ("127.0.0.1.evil.example", 403)],
)
def test_without_keys_a_local_server_answers_to_local_names_only(host: str, status: int) -> None:
    async def ask() -> int:
        async with http(gateway(backend())) as connection:
            return (await connection.get("/v1/models", headers={"host": host})).status_code

    assert run(ask) == status


def test_no_other_site_is_let_in() -> None:
    async def ask() -> Any:
        async with http(gateway(backend())) as connection:
            origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
            return await connection.options(CHAT, headers=origin)

    answer = run(ask)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


class Broken(StubBackend):
    async def routing(self, model: str | None) -> Any:
        raise RuntimeError("/secret/path at 10.0.0.7 broke in serving.gateway.stub.StubReplica")


def test_what_breaks_inside_is_told_by_its_id_alone(caplog: pytest.LogCaptureFixture) -> None:
    app = gateway(Broken(*backend().replicas))
    with caplog.at_level(logging.INFO, "plumbline.serving"):
        answer = run(lambda: post(app, HELLO, **{"x-request-id": "find-me"}))
    assert answer.status_code == 500
    expected = "internal error; report it with the request id find-me"
    assert answer.json()["error"]["message"] == expected
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    fields = vars(record)["fields"]
    assert fields["request_id"] == "find-me" and fields["error"] == "RuntimeError" and fields["frames"]


def test_logs_hold_no_content_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    body = {**HELLO, "messages": [{"role": "user", "content": "a very private question"}]}

    def logged(settings: dict[str, Any]) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, "plumbline.serving"):
            headers = {"authorization": "Bearer sk-right"}
            assert run(lambda: post(gateway(backend(), settings, keys=OneKey()), body, **headers)).is_success
        return json.dumps([vars(one).get("fields", one.getMessage()) for one in caplog.records])

    quiet = logged({})
    assert '"client": "ann"' in quiet and '"route": "/v1/chat/completions"' in quiet
    assert "private" not in quiet and "stub answer" not in quiet and "sk-right" not in quiet
    assert "a very private question" in logged({"log_content": True})
