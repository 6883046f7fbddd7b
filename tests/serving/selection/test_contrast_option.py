"""Contrastive decoding as an option: what may be asked, and the second prompt that a replica gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serving.gateway.errors import ApiError
from serving.limits import Limits
from serving.selection.judging import Judges
from serving.selection.selectors import Inference
from serving.wire import Answer, Refusal

Body = dict[str, Any]


def picture(url: str) -> Body:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


TEXT = {"type": "text", "text": "which is red ?"}
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [picture("one"), TEXT, picture("two")]},
    {"role": "assistant", "content": None, "refusal": "no"},
    {"role": "user", "content": [picture("three")]},
]
CHAT: Body = {"model": "m", "messages": MESSAGES}


async def damage(urls: Sequence[str], name: str, amount: float | None, seed: int) -> list[str]:
    return [f"{url} {name} {amount} {seed}" for url in urls]


@pytest.fixture
def selectors() -> Any:
    judges = Judges({}, 1.0)
    yield Inference(judges, Limits(), damage)
    judges.close()


def asked(selectors: Inference, option: Body, body: Body = CHAT) -> tuple[Body, Answer]:
    """What the replica is asked, and the answer."""
    bodies: list[Body] = []

    async def ask(given: Body) -> Answer | Refusal:
        bodies.append(given)
        choice = {"index": 0, "message": {"role": "assistant", "content": "the 3"}, "finish_reason": "stop"}
        return Answer(version="v-1", replica="r", body={"object": "chat.completion", "choices": [choice]})

    selectors.check({"contrast": option}, body)
    answer = asyncio.run(selectors.run({"contrast": option}, body, ask))
    assert isinstance(answer, Answer) and len(bodies) == 1
    return bodies[0], answer


def test_the_second_prompt_has_the_damaged_pictures_in_their_places(selectors: Inference):
    option = {"alpha": 0.5, "damage": "gaussian", "amount": 2}
    body, answer = asked(selectors, option, {**CHAT, "seed": -7})
    assert {**body, "contrast": None} == {**CHAT, "seed": -7, "contrast": None}
    assert (body["contrast"]["alpha"], body["contrast"]["beta"]) == (0.5, 0.1)
    other = body["contrast"]["messages"]
    assert [other[0], other[2]] == [MESSAGES[0], MESSAGES[2]]
    assert other[1]["content"] == [picture("one gaussian 2.0 7"), TEXT, picture("two gaussian 2.0 7")]
    assert other[3]["content"] == [picture("three gaussian 2.0 7")]
    said = {"selector": "contrast", "alpha": 0.5, "beta": 0.1, "damage": "gaussian", "amount": 2}
    assert answer.body["plumbline"] == said
    assert answer.body["choices"][0]["message"]["content"] == "the 3"


def test_without_pictures_the_texts_are_left(selectors: Inference):
    body, _ = asked(selectors, {"damage": "removed"})
    other = body["contrast"]["messages"]
    assert [message["content"] for message in other] == ["be brief", [TEXT], None, ""]
    assert [message["role"] for message in other] == [message["role"] for message in MESSAGES]


@pytest.mark.parametrize(
    ("option", "param", "says"),
    [
        ({"alpha": -1}, "plumbline.contrast.alpha", "greater than or equal to 0"),
        ({"beta": 0}, "plumbline.contrast.beta", "0.01"),
        ({"beta": 1.5}, "plumbline.contrast.beta", "1"),
        ({"damage": "swirl"}, "plumbline.contrast.damage", "pixel_mask"),
        ({"damage": "gaussian", "amount": -1}, "plumbline.contrast", "at least 0"),
        ({"damage": "diffuse", "amount": 1000}, "plumbline.contrast", "0 to 999"),
        ({"damage": "diffuse", "amount": 2.5}, "plumbline.contrast", "whole number"),
        ({"damage": "removed", "amount": 1}, "plumbline.contrast", "remove amount"),
        ({"step": 3}, "plumbline.contrast.step", "unknown"),
        (None, "plumbline.contrast", "null"),
    ],
)
def test_options_that_cannot_be_used_are_named(selectors: Inference, option: Any, param: str, says: str):
    with pytest.raises(ApiError) as caught:
        selectors.check({"contrast": option}, CHAT)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "which is red ?"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [TEXT]}]}, "messages"),
        ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "video_url"}]}]}, "messages"),
        *(
            ({name: value}, name)
            for name, value in {
                "n": 2,
                "stop": ".",
                "presence_penalty": 0.5,
                "logit_bias": {"3": 1.0},
                "logprobs": True,
                "tools": [],
                "response_format": {"type": "json_object"},
            }.items()
        ),
    ],
)
def test_chats_that_cannot_be_answered_so_are_named(selectors: Inference, fields: Body, param: str):
    with pytest.raises(ApiError) as caught:
        selectors.check({"contrast": {}}, {**CHAT, **fields})
    assert (caught.value.status, caught.value.param) == (400, param)


def test_greedy_answers_and_what_changes_nothing_are_taken(selectors: Inference):
    selectors.check({"contrast": {}}, {**CHAT, "temperature": 0, "n": 1, "logprobs": False, "seed": 3})
