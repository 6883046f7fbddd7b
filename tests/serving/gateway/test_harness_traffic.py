"""What harnesses for evaluation send, as their code builds it: lm-eval's completions and chats, lmms-eval's
chats with pictures."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from benchmarks.serving.corpus import picture
from benchmarks.serving.shots import chat
from serving.gateway import schema
from serving.gateway.bounds import bound, cost
from serving.gateway.errors import ApiError
from serving.gateway.gateway import plain
from serving.limits import Limits
from tests.serving.gateways import backend, client, gateway, http, post, run

LIKELIHOOD = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
STOPS = [
    "\nclass",
    "\ndef",
    "\n#",
    "\nif",
    "\nprint",
    "<|im_end|>",
]  # those of HumanEval, and the end of text
GENERATION = {"max_tokens": 256, "temperature": 0, "stop": STOPS, "seed": 1234}


def completion(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "stub", "prompt": prompt, **fields}


@pytest.mark.parametrize(
    "body",
    [
        completion([[8, 9, 10], [2, 11]], **LIKELIHOOD),  # a batch of token ids
        completion(["a red 3", "a blue 5"], **LIKELIHOOD),  # the same without a tokenizer
        completion("a red 3", **LIKELIHOOD),
        completion([[8, 9]], **GENERATION),
        completion("a red 3", max_tokens=0, echo=True, logprobs=1),  # older harnesses generate nothing
    ],
)
def test_completions_of_lm_eval_reach_the_engine_as_sent(body: dict[str, Any]) -> None:
    request = schema.parse(schema.COMPLETION, body)
    bound(request, Limits())
    assert plain(request) == body


def test_no_tokens_are_asked_for_only_with_an_echo() -> None:
    body = completion(["a red 3", "a blue 5"], max_tokens=0, echo=True)
    assert cost(body, Limits()) == 15 // 4, "nothing is generated, so nothing is reserved for it"
    for echo in ({}, {"echo": False}):
        with pytest.raises(ApiError, match="max_tokens: 0 only with echo: true"):
            schema.parse(schema.COMPLETION, completion("a", max_tokens=0, **echo))
    with pytest.raises(ApiError, match="max_tokens"):
        schema.parse(schema.CHAT, chat(max_tokens=0))


def test_messages_marked_as_text_lose_the_mark() -> None:
    """lm-eval's chats name a type beside the role of each message."""
    said = [{"role": role, "content": "hello"} for role in ("system", "user", "assistant", "user")]
    marked = [{**message, "type": "text"} for message in said]
    request = schema.parse(schema.CHAT, {"model": "stub", "messages": marked, **GENERATION})
    bound(request, Limits())
    assert plain(request) == {"model": "stub", "messages": said, **GENERATION}
    with pytest.raises(ApiError, match=r"messages\[0\].type: expected 'text', got \"image\""):
        schema.parse(schema.CHAT, {"model": "stub", "messages": [{**said[1], "type": "image"}]})


def test_a_batch_of_completions_is_answered_in_the_order_of_its_prompts() -> None:
    app = gateway(backend())
    prompts = [[number] for number in range(64)]

    async def ask() -> Any:
        return await post(app, completion(prompts, **LIKELIHOOD), "/v1/completions")

    answer = run(ask)
    assert answer.status_code == 200
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(64))


def test_lm_eval_without_a_key_is_answered_about_a_picture() -> None:
    """It looks for a tokenizer of the server first, and sends an empty key."""

    async def clean(parts: list[Any], held: Any) -> list[str]:
        return [part.url for part in parts]

    app = gateway(backend(), clean=clean)
    url = f"data:image/png;base64,{base64.b64encode(picture(4)).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "text", "text": "<image>is there a 3 ?"},
    ]
    body = {"model": "stub", "messages": [{"role": "user", "content": content}], **GENERATION}

    async def ask() -> list[int]:
        async with http(app, authorization="Bearer ") as connection:
            first = await connection.get("/tokenizer_info")
            return [first.status_code, (await connection.post("/v1/chat/completions", json=body)).status_code]

    assert run(ask) == [404, 200]


def test_a_whole_batch_of_chats_with_pictures_at_once_is_answered() -> None:
    """As lmms-eval's asynchronous models send it; many more than may be at the replicas at one time."""
    cleaned: list[str] = []

    async def clean(parts: list[Any], held: Any) -> list[str]:
        cleaned.extend(part.url for part in parts)
        return [part.url for part in parts]

    app = gateway(backend(delay_s=0.001), {"load": {"concurrent": 16}}, clean=clean)
    urls = [f"data:image/png;base64,{base64.b64encode(picture(4 + n)).decode()}" for n in range(200)]

    async def ask() -> list[str | None]:
        async with client(app) as connection:

            async def one(number: int) -> str | None:
                content: Any = [
                    {"type": "text", "text": "is there a 3 ?"},
                    {"type": "image_url", "image_url": {"url": urls[number]}},
                ]
                answer = await connection.chat.completions.create(
                    model="stub",
                    messages=[{"role": "user", "content": content}],
                    max_completion_tokens=16 if number % 2 else None,
                    max_tokens=None if number % 2 else 16,
                    temperature=0,
                    top_p=None,
                )
                return answer.choices[0].message.content

            return await asyncio.gather(*map(one, range(len(urls))))

    assert all(run(ask))
    assert sorted(cleaned) == sorted(urls)
