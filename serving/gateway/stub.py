"""Replicas without a model, for tests of everything around one. Every answer says that it is a stub's."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from serving.wire import Answer, Kind, Refusal, Routing, Standing, Version

LABEL = "stub answer"


class StubReplica:
    """The methods of a replica, its gate included, around words that are made up.

    Args:
        delay_s: before each token.
        swap_s: what reloading takes.
        refuse: given instead of every answer.
        break_after: chunks after which a stream breaks off with an exception.
    """

    def __init__(
        self,
        slot: str,
        replica: str,
        version: Version,
        *,
        delay_s: float = 0.0,
        swap_s: float = 0.0,
        refuse: Refusal | None = None,
        break_after: int | None = None,
    ) -> None:
        self._standing = Standing(
            replica=replica, slot=slot, version=version.id, state="serving", in_flight=0
        )
        self.delay_s, self.swap_s, self.refuse, self.break_after = delay_s, swap_s, refuse, break_after
        self.asked: list[tuple[Kind, dict[str, Any], str]] = []
        self.aborted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def answer(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        """As a real replica: one version from the first to the last byte."""
        self.asked = [*self.asked[-99:], (kind, body, request_id)]
        if self.refuse is not None:
            yield self.refuse
            return
        if self._standing.state != "serving":
            yield Refusal(status=503, code="swapping", message="the replica changes its version; try again")
            return
        with self._in_flight():
            version = str(self._standing.version)
            try:
                for count, value in enumerate(_bodies(kind, body, version)):
                    await asyncio.sleep(self.delay_s)
                    if count == self.break_after:
                        raise RuntimeError("this replica breaks off on purpose")
                    yield Answer(version=version, replica=self._standing.replica, body=value)
            except (GeneratorExit, asyncio.CancelledError):
                self.aborted += 1
                raise

    async def standing(self) -> Standing:
        return self._standing

    async def swap(self, version: Version) -> Standing:
        """Close the gate, let requests under way end, change over, open the gate."""
        self._standing = replace(self._standing, state="swapping")
        await self._idle.wait()
        await asyncio.sleep(self.swap_s)
        self._standing = replace(self._standing, version=version.id, state="serving")
        return self._standing

    async def check_health(self) -> None:
        if self._standing.state == "quarantined":
            raise RuntimeError("quarantined")

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._standing = replace(self._standing, in_flight=self._standing.in_flight + change)
        if self._standing.in_flight:
            self._idle.clear()
        else:
            self._idle.set()


class StubBackend:
    """Slots of stub replicas in one process; a slot's replicas take turns."""

    def __init__(self, *replicas: StubReplica, model: str = "stub", canary: float = 0.0) -> None:
        self.replicas = replicas
        self.model = model
        self.weight = canary
        self.observed: list[tuple[str, dict[str, Any]]] = []
        self._turn = itertools.count()

    def answer(
        self, slot: str, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        several = [one for one in self.replicas if one._standing.slot == slot]
        return several[next(self._turn) % len(several)].answer(kind, body, request_id)

    async def routing(self, model: str | None) -> Routing | None:
        if model not in (None, self.model):
            return None
        versions = {one.slot: one.version for one in await self.standings()}
        return Routing(
            model=self.model,
            stable=str(versions["stable"]),
            canary=versions.get("canary"),
            weight=self.weight,
        )

    async def models(self) -> list[str]:
        return [self.model]

    async def ready(self) -> bool:
        return any(one.state == "serving" for one in await self.standings())

    async def standings(self) -> list[Standing]:
        return [await one.standing() for one in self.replicas]

    async def observe(self, slot: str, sample: dict[str, Any]) -> None:
        self.observed = [*self.observed[-999:], (slot, sample)]

    async def history(self) -> list[dict[str, Any]]:
        return []


def _bodies(kind: Kind, body: dict[str, Any], version: str) -> Iterator[dict[str, Any]]:
    """The objects of an answer: one, or the chunks of a stream."""
    head = {"id": "stub", "created": int(time.time()), "model": body["model"]}
    if kind == "embedding":
        yield head | _embedding(body)
        return
    words = f"{LABEL} of {version}".split(" ")[
        : body.get("max_completion_tokens", body.get("max_tokens", 99))
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
    numbers = range(body.get("n", 1) * _prompts(body))
    if not body.get("stream"):
        name = "chat.completion" if kind == "chat" else "text_completion"
        choices = [_choice(kind, number, body, " ".join(words)) for number in numbers]
        yield head | {"object": name, "choices": choices, "usage": usage}
        return
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    for count, word in enumerate(words):
        ended = count == len(words) - 1
        piece = word if ended else word + " "
        for number in numbers:
            delta = {"delta": {"role": "assistant", "content": piece}} if kind == "chat" else {"text": piece}
            choice = {"index": number, **delta, "finish_reason": "stop" if ended else None}
            yield head | {"object": name, "choices": [choice]}
    yield head | {"object": name, "choices": [], "usage": usage}


def _prompts(body: dict[str, Any]) -> int:
    prompt = body.get("prompt", "")
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)


def _choice(kind: Kind, number: int, body: dict[str, Any], text: str) -> dict[str, Any]:
    if kind == "completion":
        return {"index": number, "text": text, "finish_reason": "stop", "logprobs": None}
    called = _called(body)
    if called is not None:
        function = {"name": called, "arguments": json.dumps({"note": text})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"index": number, "message": message, "finish_reason": "tool_calls"}
    if body.get("response_format", {}).get("type") in ("json_object", "json_schema"):
        text = json.dumps({"note": text})
    message = {"role": "assistant", "content": text}
    return {"index": number, "message": message, "finish_reason": "stop"}


def _called(body: dict[str, Any]) -> str | None:
    """The tool that the request forces."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        return choice["function"]["name"]
    return body["tools"][0]["function"]["name"] if choice == "required" else None


def _embedding(body: dict[str, Any]) -> dict[str, Any]:
    given = body["input"]
    count = 1 if isinstance(given, str) or isinstance(given[0], int) else len(given)
    data = [{"object": "embedding", "index": index, "embedding": [0.0, 1.0]} for index in range(count)]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
