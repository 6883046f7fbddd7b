"""The official `openai` client, unchanged, against the gateway over stub replicas."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest

from serving.gateway.errors import ApiError
from serving.wire import Refusal
from tests.serving.gateways import HELLO, OLD, OneKey, backend, client, gateway, run

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"note": {}}}},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "note", "schema": {"type": "object"}}}
IMAGE = "data:image/png;base64," + base64.b64encode(b"not decoded here").decode()


def with_image(url: str = IMAGE) -> dict[str, Any]:
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {**HELLO, "messages": [{"role": "user", "content": content}]}


def test_an_answer_names_its_version_and_says_that_it_is_a_stubs() -> None:
    answer = run(lambda: client(gateway(backend())).chat.completions.create(**HELLO))
    assert answer.system_fingerprint == OLD.id
    assert answer.choices[0].message.content == f"stub answer of {OLD.id}"
    assert answer.model == "stub" and answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_spells_the_same_answer(usage: bool) -> None:
    async def streamed() -> list[Any]:
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        stream = await client(gateway(backend())).chat.completions.create(**HELLO, stream=True, **options)
        return [chunk async for chunk in stream]

    chunks = run(streamed)
    text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert text == f"stub answer of {OLD.id}"
    assert {chunk.system_fingerprint for chunk in chunks} == {OLD.id}
    assert [chunk.usage is not None for chunk in chunks] == [False] * 4 + [True] * usage


def test_a_forced_tool_is_called_and_its_result_is_taken_back() -> None:
    app = gateway(backend())

    async def conversation() -> Any:
        asked = {**HELLO, "tools": [TOOL], "tool_choice": "required"}
        first = (await client(app).chat.completions.create(**asked)).choices[0].message
        calls = first.tool_calls
        assert calls is not None and calls[0].function.name == "look_up"
        result = {"role": "tool", "tool_call_id": calls[0].id, "content": "found"}
        messages = [*HELLO["messages"], first, result]
        return await client(app).chat.completions.create(model="stub", messages=messages, tools=[TOOL])

    assert run(conversation).choices[0].finish_reason == "stop"


def test_a_json_schema_reaches_the_replica_as_it_was_sent() -> None:
    behind = backend()
    schema = {"type": "object", "properties": {"a": {"default": None}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "note", "schema": schema, "strict": True}}
    run(lambda: client(gateway(behind)).chat.completions.create(**HELLO, response_format=wanted))
    (asked,) = [body for one in behind.replicas for _, body, _ in one.asked]
    assert asked["response_format"] == wanted


def test_completions_embeddings_and_models() -> None:
    app = gateway(backend())

    async def all_three() -> tuple[Any, Any, Any]:
        ask = client(app)
        batch = await ask.completions.create(model="stub", prompt=[[1, 2], [3]], logprobs=1, echo=True)
        vectors = await ask.embeddings.create(model="stub", input=["a", "b"])
        return batch, vectors, await ask.models.retrieve("stub")

    batch, vectors, model = run(all_three)
    assert [choice.index for choice in batch.choices] == [0, 1] and batch.system_fingerprint == OLD.id
    assert len(vectors.data) == 2
    assert model.id == "stub"


def test_media_are_exchanged_for_clean_ones() -> None:
    behind, seen = backend(), []

    async def clean(parts: list[Any], held: Any) -> list[str]:
        seen.extend((part.kind, part.url, part.param) for part in parts)
        return ["data:clean"] * len(parts)

    run(lambda: client(gateway(behind, clean=clean)).chat.completions.create(**with_image()))
    assert seen == [("image", IMAGE, "messages[0].content[1].image_url.url")]
    (body,) = [body for one in behind.replicas for _, body, _ in one.asked]
    assert body["messages"][0]["content"][1] == {"type": "image_url", "image_url": {"url": "data:clean"}}


def test_sound_becomes_a_data_url() -> None:
    behind = backend()

    async def clean(parts: list[Any], held: Any) -> list[str]:
        return [part.url for part in parts]

    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    body = {**HELLO, "messages": [{"role": "user", "content": [part]}]}
    run(lambda: client(gateway(behind, clean=clean)).chat.completions.create(**body))
    (asked,) = [body for one in behind.replicas for _, body, _ in one.asked]
    expected = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}
    assert asked["messages"][0]["content"] == [expected]


async def _bad_media(parts: list[Any], held: Any) -> list[str]:
    raise ApiError(400, f"{parts[0].param}: 400 Mpx > 40 Mpx; send a smaller image", param=parts[0].param)


class NoQuota:
    def take(self, client: Any, tokens: int) -> Refusal:
        return Refusal(status=429, code="rate_limit_exceeded", message="wait", retry_after_s=7.2)

    def give(self, client: Any, reserved: int, used: int) -> None:
        raise AssertionError("nothing was taken")


@pytest.mark.parametrize(
    ("body", "hooks", "expected", "status"),
    [
        (HELLO, {"keys": OneKey()}, openai.AuthenticationError, 401),
        ({**HELLO, "model": "../x"}, {}, openai.NotFoundError, 404),
        ({**HELLO, "model": "stub\n"}, {}, openai.NotFoundError, 404),
        ({**HELLO, "temperature": 9}, {}, openai.BadRequestError, 400),
        ({**HELLO, "extra_body": {"chat_template": "{{ 1 }}"}}, {}, openai.BadRequestError, 400),
        (with_image(), {}, openai.BadRequestError, 400),
        (with_image(), {"clean": _bad_media}, openai.BadRequestError, 400),
        (HELLO, {"quotas": NoQuota()}, openai.RateLimitError, 429),
        ({**HELLO, "extra_body": {"plumbline": {"version": "v-0"}}}, {}, openai.NotFoundError, 404),
    ],
)
def test_errors_have_the_clients_own_classes(body: Any, hooks: Any, expected: Any, status: int) -> None:
    app = gateway(backend(), **hooks)
    with pytest.raises(expected) as caught:
        run(lambda: client(app, key="sk-wrong").chat.completions.create(**body))
    assert caught.value.status_code == status
    assert caught.value.response.headers["x-request-id"]
    assert caught.value.body["message"] and "code" in caught.value.body
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "8"


def test_a_stream_that_breaks_off_is_an_error_to_the_client() -> None:
    async def streamed() -> list[Any]:
        app = gateway(backend(break_after=2))
        stream = await client(app).chat.completions.create(**HELLO, stream=True)
        return [chunk async for chunk in stream]

    with pytest.raises(openai.APIError, match="broke off"):
        run(streamed)


def test_the_clients_own_retries_outlast_an_overload() -> None:
    behind = backend()
    refusal = Refusal(status=503, code="overloaded", message="busy", retry_after_s=0.1)
    for one in behind.replicas:
        one.refuse = refusal
    app = gateway(behind, {"load": {"retry_s": 0.01}})

    async def recovering() -> Any:
        ask = client(app, retries=2)
        behind.replicas[1].refuse = None  # the second try meets the other replica
        return await ask.chat.completions.create(**HELLO)

    assert run(recovering).system_fingerprint == OLD.id
