"""What a selection reserves of a quota is what it then asks replicas for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rewards.rules import Length
from serving.gateway.bounds import cost
from serving.limits import Limits
from serving.selection.judging import Judges
from serving.selection.selectors import Inference
from serving.wire import Answer, Refusal

Body = dict[str, Any]
LIMITS = Limits(max_tokens=70)
BUSY = Refusal(status=503, code="busy", message="later")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
COUNTS = st.integers(2, 8)
DIRECTION = {"helpfulness": 3.0, "brevity": 1.0}
OPTIONS = st.one_of(
    st.builds(lambda n: {"best_of": {"n": n, "reward": "length"}}, COUNTS),
    st.builds(lambda n: {"consensus": {"n": n}}, COUNTS),
    st.builds(lambda k: {"neighbourhood": {"direction": DIRECTION, "reward": "length", "k": k}}, COUNTS),
    st.builds(lambda damage: {"contrast": {"damage": damage}}, st.sampled_from(["gaussian", "removed"])),
)


async def undamaged(urls: Sequence[str], name: str, amount: float | None, seed: int) -> list[str]:
    return list(urls)


@pytest.fixture(scope="module")
def selectors() -> Any:
    judges = Judges({"length": Length()}, 5.0)
    yield Inference(judges, LIMITS, undamaged)
    judges.close()


def asked_for(body: Body) -> int:
    """Tokens that a replica may spend on a chat: under each prompt that it is given."""
    chat = {key: value for key, value in body.items() if key != "contrast"}
    second = {**chat, "messages": body["contrast"]["messages"]} if "contrast" in body else None
    return cost(chat, LIMITS) + (0 if second is None else cost(second, LIMITS))


@given(
    options=OPTIONS,
    text=st.text(max_size=60),
    seed=st.integers(-(2**63), 2**63 - 1),
    bounds=st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens"]), st.integers(1, 4096), max_size=2
    ),
)
def test_the_reservation_is_what_replicas_are_asked_for(
    selectors: Inference, options: Mapping[str, Any], text: str, seed: int, bounds: Mapping[str, int]
):
    asked: list[Body] = []

    async def ask(body: Body) -> Answer | Refusal:
        asked.append(body)
        return BUSY

    content = [PICTURE, {"type": "text", "text": text}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "seed": seed, **bounds}
    selectors.check(options, body)
    reserved = sum(cost(chat, LIMITS) for chat in selectors.asked(options, body))
    assert asyncio.run(selectors.run(options, body, ask)) is BUSY
    assert reserved == sum(map(asked_for, asked)) > cost(body, LIMITS)
