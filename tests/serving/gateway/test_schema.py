"""The request schema, and the bounds that settings put on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving.shots import CHAT, COMPLETION, EMBEDDING, FEEDBACK, chat, valid
from serving.gateway import schema
from serving.gateway.bounds import bound, cost, media_of, with_media
from serving.gateway.errors import ApiError, shown
from serving.gateway.gateway import plain
from serving.limits import Limits

ADAPTERS: dict[str, Any] = {
    CHAT: schema.CHAT,
    COMPLETION: schema.COMPLETION,
    EMBEDDING: schema.EMBEDDING,
    FEEDBACK: schema.FEEDBACK,
}


@pytest.mark.parametrize(("path", "body"), valid())
def test_what_was_sent_is_what_the_engine_sees(path: str, body: dict[str, Any]) -> None:
    request = schema.parse(ADAPTERS[path], body)
    sent = json.loads(json.dumps(body))
    for message in sent.get("messages", ()):
        if message.get("content", 1) is None:
            del message["content"]
    assert plain(request) == sent
    if path != FEEDBACK:
        bound(request, Limits())


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"temprature": 1}, "temprature: unknown field; did you mean temperature?", "temprature"),
        ({"quantum": 1}, "quantum: unknown field; remove it", "quantum"),
        (
            {"chat_template": "x"},
            "chat_template: this field is not accepted: the chat template belongs to the model; remove it",
            "chat_template",
        ),
        ({"temperature": "hot"}, 'temperature: expected a valid number, got "hot"', "temperature"),
        ({"temperature": True}, "temperature: expected a valid number, got true", "temperature"),
        ({"n": 1.0}, "n: expected a valid integer, got 1.0", "n"),
        ({"messages": []}, "messages: expected at least one item, got none", "messages"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content: expected text or a list of parts, got 5",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url: this field is required and missing",
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "king", "content": ""}]},
            "messages[0]: expected one of 'system', 'developer', 'user', 'assistant', 'tool', got \"king\"",
            "messages[0]",
        ),
        ({"top_logprobs": 2}, "top_logprobs: only with logprobs: true", "top_logprobs"),
        ({"stream_options": {}}, "stream_options: only with stream: true", "stream_options"),
        *(
            (
                {"tool_choice": choice},
                "tool_choice: there are no tools to choose from; add tools",
                "tool_choice",
            )
            for choice in ("required", "auto")
        ),
    ],
)
def test_errors_say_where_what_and_how(fields: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        schema.parse(schema.CHAT, chat() | fields)
    assert (caught.value.message, caught.value.param, caught.value.status) == (message, param, 400)


@pytest.mark.parametrize(
    ("limit", "body", "path"),
    [
        ({"messages": 1}, chat() | {"messages": chat()["messages"] * 2}, CHAT),
        ({"prompt_chars": 4}, chat("hello"), CHAT),
        ({"prompt_chars": 4}, chat([{"type": "text", "text": "hello"}]), CHAT),
        ({"max_tokens": 4}, chat(max_tokens=5), CHAT),
        ({"max_tokens": 4}, chat(max_completion_tokens=5), CHAT),
        ({"n": 2}, chat(n=3), CHAT),
        ({"logprobs": 1}, chat(logprobs=True, top_logprobs=2), CHAT),
        ({"stop": 1}, chat(stop=["a", "b"]), CHAT),
        ({"logit_bias": 0}, chat(logit_bias={"1": 1}), CHAT),
        ({"tools": 0}, chat(tools=[{"type": "function", "function": {"name": "f"}}]), CHAT),
        (
            {"schema_kib": 1},
            chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"a": "x" * 1024}}}]),
            CHAT,
        ),
        ({"prompts": 1}, {"model": "m", "prompt": ["a", "b"]}, COMPLETION),
        ({"prompt_chars": 2}, {"model": "m", "prompt": [1, 2, 3]}, COMPLETION),
        ({"samples": 3}, {"model": "m", "prompt": ["a", "b"], "n": 2}, COMPLETION),
        ({"logprobs": 0}, {"model": "m", "prompt": "a", "logprobs": 1}, COMPLETION),
        ({"prompts": 1}, {"model": "m", "input": ["a", "b"]}, EMBEDDING),
    ],
)
def test_each_limit_holds(limit: dict[str, int], body: dict[str, Any], path: str) -> None:
    request = schema.parse(ADAPTERS[path], body)
    bound(request, Limits())
    with pytest.raises(ApiError, match="at most"):
        bound(request, Limits(**limit))


@pytest.mark.parametrize(
    "target", ["https://example.org/s.json", "other.json", "file:///etc/passwd", "//example.org"]
)
def test_schemas_point_nowhere_else(target: str) -> None:
    deep = {"type": "object", "properties": {"a": [{"$ref": "#/a"}, {"items": {"$ref": target}}]}}
    named = {"type": "json_schema", "json_schema": {"name": "s", "schema": deep}}
    with pytest.raises(ApiError, match="expected \\$ref within the schema"):
        bound(schema.parse(schema.CHAT, chat(response_format=named)), Limits())


def body_with(*parts: dict[str, Any]) -> dict[str, Any]:
    return plain(schema.parse(schema.CHAT, chat(list(parts))))


def test_media_are_found_in_order_and_put_back_in_place() -> None:
    body = body_with(
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:1", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/v"}},
    )
    found = media_of(body, Limits())
    assert [(one.kind, one.url) for one in found] == [
        ("image", "data:1"),
        ("audio", "data:audio/mp3;base64,AA"),
        ("video", "https://example.org/v"),
    ]
    assert found[1].param == "messages[0].content[2].input_audio.data"
    with_media(body, ["data:a", "data:b", "data:c"])
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}},
        {"type": "audio_url", "audio_url": {"url": "data:b"}},
        {"type": "video_url", "video_url": {"url": "data:c"}},
    ]


def test_too_many_media_and_other_schemes_are_refused() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:1"}}
    with pytest.raises(ApiError, match="at most 1 images, videos and sounds per request, got 2"):
        media_of(body_with(image, image), Limits(media=1))
    for url in ("file:///etc/passwd", "ftp://x", "/etc/passwd", "javascript:1", " data:1"):
        with pytest.raises(ApiError, match="expected a data URL"):
            media_of(body_with({"type": "video_url", "video_url": {"url": url}}), Limits())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat("x" * 40, max_tokens=7, n=3), 10 + 21),
        (chat([{"type": "text", "text": "x" * 40}], max_completion_tokens=5), 10 + 5),
        (chat("x"), 100),  # what is not said is the most
        ({"prompt": ["x" * 20, "x" * 20], "max_tokens": 2, "n": 2}, 10 + 8),
        ({"prompt": [1, 2, 3, 4], "max_tokens": 2}, 1 + 2),
        ({"input": ["x" * 40]}, 10),
    ],
)
def test_what_a_request_may_cost(body: dict[str, Any], expected: int) -> None:
    """Characters over 4, and for each answer the tokens it may have; embeddings have no answer."""
    assert cost(body, Limits(max_tokens=100)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(schema.KNOWN) | st.text(max_size=8), JSON, max_size=6))
def test_any_json_is_parsed_or_refused_in_words(body: dict[str, Any]) -> None:
    for adapter in ADAPTERS.values():
        try:
            schema.parse(adapter, chat() | body)
        except ApiError as error:
            assert error.status == 400 and len(error.message) < 700
            assert "\n" not in error.message


@given(JSON)
def test_what_is_shown_of_a_value_is_short_and_plain(value: Any) -> None:
    text = shown(value)
    assert len(text) <= 60 and text.isascii() and text.isprintable()
