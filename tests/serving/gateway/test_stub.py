"""The stub keeps the promises of a replica, so that what is tested on it holds for the protocol."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.gateway.stub import LABEL, StubReplica
from serving.wire import Answer, Refusal
from tests.serving.gateways import HELLO, NEW, OLD, run


async def answers(replica: StubReplica, **fields: Any) -> list[Answer | Refusal]:
    return [one async for one in replica.answer("chat", {**HELLO, **fields}, "id")]


def test_every_answer_is_labelled() -> None:
    async def one() -> Any:
        return await answers(StubReplica("stable", "a", OLD))

    (answer,) = run(one)
    assert LABEL in answer.body["choices"][0]["message"]["content"]


def test_a_swap_lets_requests_end_and_refuses_new_ones_meanwhile() -> None:
    async def swap() -> Any:
        replica = StubReplica("stable", "a", OLD, delay_s=0.01)
        asked = asyncio.create_task(answers(replica, stream=True))
        while not (await replica.standing()).in_flight:
            await asyncio.sleep(0)
        swapping = asyncio.create_task(replica.swap(NEW))
        await asyncio.sleep(0)
        meanwhile = await answers(replica)
        before = await asked
        standing = await swapping
        return before, meanwhile, standing, await answers(replica)

    before, meanwhile, standing, after = run(swap)
    assert {one.version for one in before} == {OLD.id} and len(before) == 5
    assert [(one.status, one.code) for one in meanwhile] == [(503, "swapping")]
    assert (standing.state, standing.version, standing.in_flight) == ("serving", NEW.id, 0)
    assert {one.version for one in after} == {NEW.id}
