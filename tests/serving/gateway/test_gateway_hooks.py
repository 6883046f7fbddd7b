"""Quotas, feedback and selection as the gateway calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from serving.gateway.errors import ApiError
from serving.gateway.votes import REMEMBERED, Origin, Votes
from serving.wire import Answer, Refusal
from tests.serving.gateways import HELLO, NEW, OLD, OneKey, backend, gateway, http, post, run


class Ledger:
    """Quotas that note what they are asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def take(self, client: Any, tokens: int) -> Refusal | None:
        self.calls.append(("take", client.id, tokens))
        return None

    def give(self, client: Any, reserved: int, used: int) -> None:
        self.calls.append(("give", client.id, reserved, used))


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_reserved_is_settled_by_what_was_used(stream: bool) -> None:
    ledger = Ledger()
    body = {**HELLO, "max_tokens": 50, "stream": stream}
    assert run(lambda: post(gateway(backend(), quotas=ledger), body)).status_code == 200
    # "hello" has 5 characters, at 4 for a token; the stub counts 3 prompt tokens and says 4 words
    assert ledger.calls == [("take", "anonymous", 51), ("give", "anonymous", 51, 7)]


def test_what_failed_gives_its_tokens_back() -> None:
    ledger = Ledger()
    refusal = Refusal(status=400, code="x", message="no")
    run(lambda: post(gateway(backend(refuse=refusal), quotas=ledger), {**HELLO, "max_tokens": 50}))
    assert ledger.calls[-1] == ("give", "anonymous", 51, 0)


class Store:
    def __init__(self, refusal: Refusal | None = None) -> None:
        self.kept: list[dict[str, Any]] = []
        self.rated: list[dict[str, Any]] = []
        self._refusal = refusal

    async def remember(self, **answer: Any) -> None:
        self.kept.append(answer)

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        self.rated.append(feedback)
        return self._refusal


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_offered_to_the_store_and_can_be_rated(stream: bool) -> None:
    store, behind = Store(), backend()
    app = gateway(behind, feedback=store)

    async def ask_and_rate() -> Any:
        async with http(app) as ask:
            await ask.post("/v1/chat/completions", json={**HELLO, "stream": stream})
            await asyncio.sleep(0)
            (answer,) = store.kept
            rating = {"kind": "rating", "id": answer["answer_id"], "rating": 1}
            result = await ask.post("/v1/feedback", json=rating)
            await asyncio.sleep(0)
            return result, answer

    result, answer = run(ask_and_rate)
    assert result.status_code == 200 and store.rated[0]["rating"] == 1
    assert answer["version"] == OLD.id and answer["prompt"]["messages"] == HELLO["messages"]
    (choice,) = answer["answer"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": f"stub answer of {OLD.id}"}
    assert answer["answer"]["id"] == answer["answer_id"]
    slot, sample = behind.observed[-1]
    assert slot == "stable" and sample == {"model": "stub", "version": OLD.id, "rating": 1}
    assert behind.observed[0][1]["refused"] is False


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (False, False)),
        ({"x-plumbline-consent": "yes"}, (True, False)),
        ({"x-plumbline-consent": "no", "authorization": "Bearer sk-right"}, (False, True)),
    ],
)
def test_consent_is_the_requests_or_the_keys(headers: dict[str, str], expected: tuple[bool, bool]) -> None:
    store = Store()
    app = gateway(backend(), feedback=store, keys=OneKey() if "authorization" in headers else None)

    async def ask() -> None:
        await post(app, HELLO, **headers)
        await asyncio.sleep(0)

    run(ask)
    (kept,) = store.kept
    assert (kept["header"], kept["key"]) == expected


def test_feedback_on_an_answer_that_is_not_known_is_404() -> None:
    refusal = Refusal(status=404, code="unknown_answer", message="id: no such answer")
    body = {"kind": "rating", "id": "chatcmpl-" + "0" * 32, "rating": -1}
    app = gateway(backend(), feedback=Store(refusal))
    answer = run(lambda: post(app, body, path="/v1/feedback"))
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_answer"
    off = run(lambda: post(gateway(backend()), body, path="/v1/feedback"))
    assert off.status_code == 404 and off.json()["error"]["code"] == "feedback_off"


def test_a_store_that_fails_costs_nobody_an_answer() -> None:
    class Full(Store):
        async def remember(self, **answer: Any) -> None:
            raise OSError("no space left")

    assert run(lambda: post(gateway(backend(), feedback=Full()), HELLO)).status_code == 200


def test_votes_measure_the_canary() -> None:
    votes = Votes()
    stable, canary = Origin("m", "stable", OLD.id), Origin("m", "canary", NEW.id)
    votes.note("s", stable)
    votes.note("c", canary)
    measured = {"model": "m", "version": NEW.id}
    choice = {"kind": "choice", "chosen": "c", "rejected": "s"}
    assert list(votes.samples(choice)) == [("canary", measured | {"won": True})]
    assert list(votes.samples(choice | {"chosen": "s", "rejected": "c"})) == [
        ("canary", measured | {"won": False})
    ]
    assert list(votes.samples({"kind": "rating", "id": "c", "rating": -1})) == [
        ("canary", measured | {"rating": -1})
    ]
    assert not list(votes.samples(choice | {"rejected": "unknown"}))
    assert not list(votes.samples({"kind": "correction", "id": "c", "correction": "x"}))
    for number in range(REMEMBERED):
        votes.note(str(number), stable)
    assert not list(votes.samples(choice))


class Longest:
    """Asks twice and takes the second answer."""

    def __init__(self) -> None:
        self.tries = 0

    def check(self, options: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        if set(options) != {"twice"}:
            raise ApiError(400, "plumbline: expected twice", param="plumbline")

    def asked(self, options: Mapping[str, Any], body: dict[str, Any]) -> list[dict[str, Any]]:
        return [body, body]

    async def run(self, options: Mapping[str, Any], body: dict[str, Any], ask: Any) -> Answer | Refusal:
        self.tries += 1
        await ask(body)
        return await ask(body)


def test_a_selection_answers_like_any_chat() -> None:
    body = {**HELLO, "plumbline": {"twice": True}}
    behind = backend()
    answer = run(lambda: post(gateway(behind, selectors=Longest()), body))
    assert answer.status_code == 200 and answer.json()["system_fingerprint"] == OLD.id
    asked = [one for replica in behind.replicas for one in replica.asked]
    assert len(asked) == 2 and all("plumbline" not in body for _, body, _ in asked)


def test_a_selection_reserves_the_quota_of_all_that_it_asks_for() -> None:
    """Two chats of 8 characters (2 tokens) and at most 50 tokens each."""
    ledger = Ledger()
    body = {**HELLO, "messages": [{"role": "user", "content": "8 letter"}], "max_tokens": 50}
    app = gateway(backend(), selectors=Longest(), quotas=ledger)
    run(lambda: post(app, {**body, "plumbline": {"twice": True}}))
    assert ledger.calls[0] == ("take", "anonymous", 104)


@pytest.mark.parametrize(
    "body",
    [{"plumbline": {"thrice": 1}}, {"plumbline": {"twice": 1}, "stream": True}, {"plumbline": "twice"}],
)
def test_selections_that_cannot_be(body: dict[str, Any]) -> None:
    answer = run(lambda: post(gateway(backend(), selectors=Longest()), {**HELLO, **body}))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "plumbline"


def test_a_selection_over_two_versions_is_made_again_and_then_given_up() -> None:
    behind, selector = backend(), Longest()
    second = behind.replicas[1]
    second._standing = replace(second._standing, version=NEW.id)
    answer = run(lambda: post(gateway(behind, selectors=selector), {**HELLO, "plumbline": {"twice": 1}}))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "version_changed"
    assert selector.tries == 3
