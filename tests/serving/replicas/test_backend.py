"""What the gateway sees of replicas that answer, break off or are gone, and of a conductor that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serving.replicas import backend as module
from serving.replicas.backend import LOST, ServeBackend
from serving.wire import Answer, Refusal, Routing

BODY = {"model": "m"}
ROUTING = Routing(model="m", stable="v-a")


def answer(text: str) -> Answer:
    return Answer(version="v-a", replica="r", body={"text": text})


class Stream:
    """Serve's response generator: some lists of items, then maybe an error."""

    def __init__(self, lists: list[list[Answer]], error: Exception | None = None) -> None:
        self.lists, self.error, self.cancelled = lists, error, False

    async def __aiter__(self) -> AsyncIterator[list[Answer]]:
        for some in self.lists:
            yield some
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment handle that gives one stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.answers = self

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, kind: str, body: dict[str, Any], request_id: str) -> Stream:
        return self.stream


class Method:
    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class Conductor:
    """The named actor; `broken` makes every call fail."""

    def __init__(self) -> None:
        self.broken, self.asked, self.told = False, 0, list[Any]()
        self.routing, self.ready = Method(self._routing), Method(self._ready)
        self.observe = Method(self._observe)

    async def _routing(self, model: str | None) -> Routing:
        self.asked += 1
        if self.broken:
            raise RayActorError()
        return ROUTING

    async def _ready(self) -> bool:
        if self.broken:
            raise RayActorError()
        return True

    async def _observe(self, model: str, slot: str, samples: list[dict[str, Any]]) -> None:
        self.told.append((model, slot, samples))


def served(stable: Stream, canary: Stream | None = None) -> tuple[ServeBackend, Conductor]:
    slots = {"stable": Handle(stable)} | ({"canary": Handle(canary)} if canary else {})
    conductor = Conductor()
    return ServeBackend({"m": slots}, conductor), conductor


async def all_of(backend: ServeBackend, slot: str = "stable") -> list[Answer | Refusal]:
    return [item async for item in backend.answer(slot, "chat", BODY, "id")]


def test_answers_pass_as_they_are_and_nothing_is_cancelled() -> None:
    stream = Stream([[answer("a")], [answer("b"), answer("c")]])
    assert asyncio.run(all_of(served(stream)[0])) == [answer("a"), answer("b"), answer("c")]
    assert not stream.cancelled


def test_a_replica_that_dies_is_a_refusal_that_may_be_tried_again() -> None:
    stream = Stream([[answer("a")]], RayActorError())
    assert asyncio.run(all_of(served(stream)[0])) == [answer("a"), LOST]
    assert LOST.status == 503 and LOST.retry_after_s


def test_whoever_leaves_ends_the_request_in_the_replica() -> None:
    async def main() -> None:
        stream = Stream([[answer("a"), answer("b")]])
        items = served(stream)[0].answer("stable", "chat", BODY, "id")
        assert await anext(items) == answer("a")
        await items.aclose()
        assert stream.cancelled

    asyncio.run(main())


def test_without_replicas_for_a_canary_the_stable_ones_answer() -> None:
    stable, canary = Stream([[answer("stable")]]), Stream([[answer("canary")]])
    assert asyncio.run(all_of(served(stable)[0], "canary")) == [answer("stable")]
    assert asyncio.run(all_of(served(stable, canary)[0], "canary")) == [answer("canary")]


def test_routes_are_remembered_shortly_and_outlive_a_silent_conductor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        backend, conductor = served(Stream([]))
        assert [await backend.routing("m"), await backend.routing("m")] == [ROUTING, ROUTING]
        assert conductor.asked == 1
        monkeypatch.setattr(module, "REMEMBER_S", 0.0)
        conductor.broken = True
        assert await backend.routing("m") == ROUTING and conductor.asked == 2
        assert await backend.routing("../m") is None and conductor.asked == 2
        assert not await backend.ready()

    asyncio.run(main())


def test_without_a_conductor_from_the_start_nothing_is_made_up() -> None:
    async def main() -> None:
        backend, conductor = served(Stream([]))
        conductor.broken = True
        with pytest.raises(RayActorError):
            await backend.routing("m")

    asyncio.run(main())


def test_measurements_are_told_together_and_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_EVERY_S", 0.0)

    async def main() -> None:
        backend, conductor = served(Stream([]))
        for status in (200, 500):
            await backend.observe("canary", {"model": "m", "status": status})
        assert conductor.told == []
        async with asyncio.timeout(30):
            while not conductor.told:
                await asyncio.sleep(0)
        ((model, slot, samples),) = conductor.told
        assert (model, slot, [one["status"] for one in samples]) == ("m", "canary", [200, 500])

    asyncio.run(main())
