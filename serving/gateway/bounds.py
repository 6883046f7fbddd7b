"""Requests within the server's limits, the media inside them, and what they may cost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.types import MediaKind
from serving.gateway.errors import ApiError, path, shown
from serving.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest, MediaPart, Sampling
from serving.limits import Limits

Body = dict[str, Any]

#: The field of each kind of part that holds its URL.
URL_FIELDS: dict[str, MediaKind] = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
CHARS_PER_TOKEN = 4  # for quotas, before the tokens are known


def bound(request: ChatRequest | CompletionRequest | EmbeddingRequest, limits: Limits) -> None:
    """Raises ApiError (400) for the first thing that this server does not take that large."""
    if isinstance(request, EmbeddingRequest):
        _texts("input", request.input, limits)
        return
    prompts = 1
    if isinstance(request, ChatRequest):
        _chat(request, limits)
    else:
        prompts = _texts("prompt", request.prompt, limits)
        _most("logprobs", request.logprobs, limits.logprobs)
    _sampling(request, limits)
    _most("n", prompts * (request.n or 1), limits.samples, "answers (prompts times n)")


def _sampling(request: Sampling, limits: Limits) -> None:
    _most("max_tokens", request.max_tokens, limits.max_tokens)
    _most("n", request.n, limits.n)
    if isinstance(request.stop, list):
        _most("stop", len(request.stop), limits.stop, "texts")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    _most("stop", max(map(len, stops), default=0), 256, "characters")
    _most("logit_bias", len(request.logit_bias or ()), limits.logit_bias, "tokens")


def _chat(request: ChatRequest, limits: Limits) -> None:
    _most("messages", len(request.messages), limits.messages, "messages")
    _most("messages", sum(map(len, _chat_texts(request))), limits.prompt_chars, "characters of text")
    _most("max_completion_tokens", request.max_completion_tokens, limits.max_tokens)
    _most("top_logprobs", request.top_logprobs, limits.logprobs)
    _most("tools", len(request.tools or ()), limits.tools, "tools")
    schemas = [
        ("tools", tool.function.parameters) for tool in request.tools or () if tool.function.parameters
    ]
    if request.response_format is not None and request.response_format.type == "json_schema":
        schemas.append(("response_format", request.response_format.json_schema.schema_))
    total = 0
    for where, schema in schemas:
        total += len(json.dumps(schema))
        _most(where, total, limits.schema_kib * 1024, "bytes of JSON schema")
        _self_contained(where, schema)


def _chat_texts(request: ChatRequest) -> Iterator[str]:
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if part.type == "text":
                yield part.text
        if message.role == "assistant":
            yield message.refusal or ""
            yield from (call.function.arguments for call in message.tool_calls or ())
    yield from (tool.function.description or "" for tool in request.tools or ())


def _self_contained(where: str, schema: Any) -> None:
    """A schema must not point outside itself: nothing is fetched for a client."""
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            target = value.get("$ref")
            if isinstance(target, str) and not target.startswith("#"):
                raise ApiError(
                    400, f"{where}: expected $ref within the schema (#/...), got {shown(target)}", param=where
                )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _texts(where: str, value: str | Sequence[Any], limits: Limits) -> int:
    """The number of prompts in a completion's or an embedding's field."""
    prompts, size = _counted(value)
    _most(where, prompts, limits.prompts, "prompts")
    _most(where, size, limits.prompt_chars, "characters or token ids")
    return prompts


def _counted(value: str | Sequence[Any]) -> tuple[int, int]:
    """Prompts, and their characters or token ids together."""
    if isinstance(value, str) or isinstance(value[0], int):
        return 1, len(value)
    return len(value), sum(map(len, value))


def _most(where: str, got: int | None, most: int, unit: str = "") -> None:
    if got is not None and got > most:
        raise ApiError(
            400, f"{where}: at most {most} {unit}".rstrip() + f" per request, got {got}", param=where
        )


def media_of(body: Body, limits: Limits) -> list[MediaPart]:
    """The media of a chat in order. Raises ApiError for too many, and for what is no URL of media."""
    found = [
        MediaPart(kind=kind, url=_checked(url, where), param=where)
        for part, where in _media_parts(body)
        for kind, url in [_medium(part)]
    ]
    _most("messages", len(found), limits.media, "images, videos and sounds")
    return found


def media_kinds(body: Body) -> Iterator[tuple[MediaKind, str]]:
    """What each medium of a chat is, and where it stands."""
    for part, where in _media_parts(body):
        yield URL_FIELDS.get(part["type"], "audio"), where


def with_media(body: Body, urls: Sequence[str]) -> None:
    """Put clean data URLs where the media of a chat were, in place."""
    for (part, _), url in zip(list(_media_parts(body)), urls, strict=True):
        kind = part["type"]
        if kind == "input_audio":
            del part["input_audio"]
            part["type"] = kind = "audio_url"
        part[kind] = {**part.get(kind, {}), "url": url}


def _media_parts(body: Body) -> Iterator[tuple[Body, str]]:
    for index, message in enumerate(body["messages"]):
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] != "text":
                field = "data" if part["type"] == "input_audio" else "url"
                yield part, path("messages", index, "content", number, part["type"], field)


def _medium(part: Body) -> tuple[Any, str]:
    if part["type"] == "input_audio":
        audio = part["input_audio"]
        return "audio", f"data:audio/{audio['format']};base64,{audio['data']}"
    return URL_FIELDS[part["type"]], part[part["type"]]["url"]


def _checked(url: str, where: str) -> str:
    if not re.match(r"(?i)(data:|https?://)", url):
        raise ApiError(
            400, f"{where}: expected a data URL (data:image/png;base64,...), got {shown(url)}", param=where
        )
    return url


def cost(body: Body, limits: Limits) -> int:
    """Tokens that a request may cost, as far as one can tell before it runs."""
    prompts, chars = 1, 0
    if "messages" in body:
        chars = sum(_chars(message.get("content")) for message in body["messages"])
    else:
        prompts, chars = _counted(body["input"] if "input" in body else body["prompt"])
    answer = body.get("max_completion_tokens", body.get("max_tokens", limits.max_tokens))
    samples = 0 if "input" in body else prompts * body.get("n", 1)
    return chars // CHARS_PER_TOKEN + answer * samples


def _chars(content: Any) -> int:
    if isinstance(content, list):
        return sum(len(part.get("text", "")) for part in content)
    return len(content or "")
