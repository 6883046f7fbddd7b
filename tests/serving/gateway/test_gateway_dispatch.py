"""Which replica answers, and what a client notices of one that does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serving.gateway import dispatch
from serving.gateway.dispatch import pick
from serving.gateway.stub import StubBackend
from serving.wire import Answer, Refusal, Routing
from tests.serving.gateways import HELLO, NEW, OLD, OneKey, backend, gateway, http, post, run

SWAPPING = Refusal(status=503, code="swapping", message="the replica changes its version; try again")


def metric(app: Any, name: str) -> float:
    async def ask() -> str:
        async with http(app) as connection:
            return (await connection.get("/metrics")).text

    lines = [line for line in run(ask).splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def routed(weight: float) -> Routing:
    return Routing(model="stub", stable=OLD.id, canary=NEW.id, weight=weight)


def test_the_share_of_the_canary_is_its_weight_and_only_grows_with_it() -> None:
    clients = [f"client {number}" for number in range(4000)]
    few = {who for who in clients if pick(routed(0.1), who, "salt") == "canary"}
    more = {who for who in clients if pick(routed(0.3), who, "salt") == "canary"}
    # 4 standard errors of a binomial share: 4 * sqrt(0.1 * 0.9 / 4000) = 0.019 and 0.029
    assert abs(len(few) / 4000 - 0.1) < 0.019 and abs(len(more) / 4000 - 0.3) < 0.029
    assert few < more  # nobody who is on the canary leaves it when the weight grows
    assert few == {who for who in clients if pick(routed(0.1), who, "salt") == "canary"}
    assert few != {who for who in clients if pick(routed(0.1), who, "pepper") == "canary"}


def test_all_or_nobody_at_the_ends() -> None:
    for who in map(str, range(100)):
        assert pick(routed(0.0), who, "") == "stable" and pick(routed(1.0), who, "") == "canary"


def test_a_user_stays_on_one_version() -> None:
    app = gateway(backend(canary=0.5), keys=OneKey())

    async def versions() -> list[set[str]]:
        key = {"authorization": "Bearer sk-right"}
        async with http(app, **key) as ask:
            seen: list[set[str]] = []
            for user in "abcdefghij":
                bodies = [{**HELLO, "user": user}] * 4
                answers = [await ask.post("/v1/chat/completions", json=body) for body in bodies]
                seen.append({answer.headers["x-plumbline-version"] for answer in answers})
            return seen

    seen = run(versions)
    assert all(len(one) == 1 for one in seen)
    assert set.union(*seen) == {OLD.id, NEW.id}


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_request_may_name_one_of_the_served_versions(version: Any) -> None:
    body = {**HELLO, "plumbline": {"version": version.id}}
    answer = run(lambda: post(gateway(backend(canary=0.5)), body))
    assert answer.headers["x-plumbline-version"] == answer.json()["system_fingerprint"] == version.id


def test_a_replica_that_swaps_costs_nobody_an_answer() -> None:
    behind = backend()
    behind.replicas[0].refuse = SWAPPING
    app = gateway(behind)
    for _ in range(4):
        assert run(lambda: post(app, HELLO)).status_code == 200
    assert (
        metric(app, "plumbline_retries_total") == 4
    )  # replicas take turns: each answer meets the closed one first


def test_no_two_tries_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FIRST_PAUSE_S", 0.75)  # longer than a busy machine stands still
    monkeypatch.setattr(dispatch, "LONGEST_PAUSE_S", 7.5)
    behind = backend(refuse=SWAPPING)
    run(lambda: post(gateway(behind, {"load": {"retry_s": 3.0}}), HELLO))
    ids = [request_id for one in behind.replicas for _, _, request_id in one.asked]
    assert len(ids) == len(set(ids)) == 3  # pauses of 0.75 and 1.5 s fit, one of 3 does not


def test_an_error_of_the_request_is_not_tried_again() -> None:
    refusal = Refusal(status=400, code="context_length_exceeded", message="prompt: 9 tokens > 8")
    behind = backend(refuse=refusal)
    answer = run(lambda: post(gateway(behind), HELLO))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert sum(len(one.asked) for one in behind.replicas) == 1


def test_all_replicas_busy_is_503_with_a_time_to_come_back() -> None:
    app = gateway(backend(refuse=SWAPPING), {"load": {"retry_s": 0.1}})
    answer = run(lambda: post(app, HELLO))
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1


def test_a_request_that_kills_its_replica_is_not_handed_on_for_ever() -> None:
    behind = backend(break_after=0)
    answer = run(lambda: post(gateway(behind), HELLO))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
    assert sum(len(one.asked) for one in behind.replicas) == 4


def test_a_dead_canary_falls_back_to_stable_and_its_failure_is_seen() -> None:
    behind = backend(canary=1.0)
    behind.replicas[2].break_after = 0
    app = gateway(behind, {"load": {"retry_s": 10}})
    answer = run(lambda: post(app, HELLO))
    assert answer.headers["x-plumbline-version"] == OLD.id
    pinned = run(lambda: post(app, {**HELLO, "plumbline": {"version": NEW.id}}))
    assert pinned.status_code == 503


class Mixing(StubBackend):
    """Its replicas change their version in the middle of an answer."""

    async def answer(self, slot: str, kind: Any, body: Any, request_id: str) -> AsyncGenerator[Any, None]:
        chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
        yield Answer(version=OLD.id, replica="a", body=chunk)
        yield Answer(version=NEW.id, replica="a", body=chunk)


def test_versions_are_never_mixed_in_an_answer() -> None:
    app = gateway(Mixing(*backend().replicas))
    answer = run(lambda: post(app, {**HELLO, "stream": True}))
    assert NEW.id not in answer.text and "[DONE]" not in answer.text
    assert '"code":"mixed_versions"' in answer.text
    assert metric(app, "plumbline_mixed_versions_total") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_the_replica(stream: bool) -> None:
    behind = backend(delay_s=0.1)
    app = gateway(behind)
    body = json.dumps({**HELLO, "stream": stream}).encode()

    async def leave() -> None:
        """By hand, since httpx's transport cannot hang up."""
        left = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None: ...

        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b""}
        scope |= {"headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http"}
        task = asyncio.create_task(app(scope, receive, send))
        await busy(behind, 1)
        left.set()
        await task

    run(leave)
    assert [one.aborted for one in behind.replicas] == [1, 0]
    states = [run(one.standing) for one in behind.replicas]
    assert [one.in_flight for one in states] == [0, 0]
    assert metric(app, "plumbline_in_flight ") == 0


def test_an_answer_that_takes_too_long_is_ended() -> None:
    behind = backend(delay_s=0.3)
    answer = run(lambda: post(gateway(behind, {"load": {"request_timeout_s": 0.05}}), HELLO))
    assert answer.status_code == 504
    assert behind.replicas[0].aborted == 1


class Held(StubBackend):
    """Its replicas answer when they are told to."""

    def __init__(self, *replicas: Any) -> None:
        super().__init__(*replicas)
        self.go = asyncio.Event()

    async def answer(self, slot: str, kind: Any, body: Any, request_id: str) -> AsyncGenerator[Any, None]:
        await self.go.wait()
        async for item in super().answer(slot, kind, body, request_id):
            yield item


def test_what_is_over_the_queue_is_refused_at_once() -> None:
    behind = Held(*backend().replicas)
    app = gateway(behind, {"load": {"concurrent": 1, "queue": 2}})

    async def burst() -> list[Any]:
        async with http(app) as ask:
            asked = [asyncio.create_task(ask.post("/v1/chat/completions", json=HELLO)) for _ in range(10)]
            while sum(one.done() for one in asked) < 7:
                await asyncio.sleep(0.001)
            behind.go.set()
            return [await one for one in asked]

    answers = run(burst)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 7
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 503} == {"1"}


def test_who_waits_too_long_for_a_turn_is_told_so() -> None:
    behind = Held(*backend().replicas)
    app = gateway(behind, {"load": {"concurrent": 1, "queue_timeout_s": 0.02}})

    async def second() -> Any:
        async with http(app) as ask:
            first = asyncio.create_task(ask.post("/v1/chat/completions", json=HELLO))
            await asyncio.sleep(0)
            refused = await ask.post("/v1/chat/completions", json=HELLO)
            behind.go.set()
            assert (await first).status_code == 200
            return refused

    assert run(second).status_code == 503


async def busy(behind: StubBackend, count: int) -> None:
    """Until so many requests are at the replicas."""
    while sum([(await one.standing()).in_flight for one in behind.replicas]) < count:
        await asyncio.sleep(0.001)


def test_a_swap_waits_for_what_is_under_way() -> None:
    behind = backend(delay_s=0.05)
    first, second = behind.replicas
    app = gateway(behind)

    async def swap_under_load() -> list[Any]:
        async with http(app) as ask:
            asked = [
                asyncio.create_task(ask.post("/v1/chat/completions", json={**HELLO, "stream": True}))
                for _ in range(4)
            ]
            await busy(behind, 4)
            await asyncio.gather(first.swap(NEW), second.swap(NEW))
            return [await one for one in asked] + [await ask.post("/v1/chat/completions", json=HELLO)]

    *before, after = run(swap_under_load)
    assert {answer.headers["x-plumbline-version"] for answer in before} == {OLD.id}
    assert all("[DONE]" in answer.text and NEW.id not in answer.text for answer in before)
    assert after.json()["system_fingerprint"] == NEW.id


def test_each_answer_is_measured_for_the_canarys_gate() -> None:
    behind = backend()
    run(lambda: post(gateway(behind), {**HELLO, "stream": True}))
    ((slot, sample),) = behind.observed
    assert slot == "stable" and sample["version"] == OLD.id and sample["status"] == 200
    assert sample["tokens"] == 4 and sample["finish"] == ["stop"] and sample["first_s"] > 0
