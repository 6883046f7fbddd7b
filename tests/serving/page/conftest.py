"""The page of a real gateway on stub replicas, for a browser (`tests.serving.browser`) to open."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn

from serving import page
from serving.gateway.gateway import build
from serving.gateway.stub import StubBackend, StubReplica
from serving.settings import Settings
from serving.wire import Answer, Kind, Refusal, Version
from tests.serving.browser import PATIENCE_S

VERSIONS = {slot: f"v-{slot[0] * 12}" for slot in ("stable", "canary")}


class Saying(StubReplica):
    """A stub that says what a test wants said: three chunks of a word, then the rest."""

    says = "a red square"

    async def answer(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        words = self.says.split(" ")
        async for item in super().answer(kind, body, request_id):
            if isinstance(item, Refusal) or not item.body["choices"]:
                yield item
                continue
            [choice] = item.body["choices"]
            last = choice["finish_reason"] is not None
            piece = " ".join(words) if last or not words else words.pop(0) + " "
            delta = choice["delta"] | {"content": piece}
            yield replace(item, body=item.body | {"choices": [choice | {"delta": delta}]})


class Told(StubBackend):
    """A stub with a history."""

    def __init__(self, *replicas: StubReplica, **given: Any) -> None:
        super().__init__(*replicas, **given)
        self.told: list[dict[str, Any]] = []

    async def history(self) -> list[dict[str, Any]]:
        return self.told


@dataclass
class Kept:
    """A feedback store that keeps what it gets in a list."""

    rated: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)  # answer id -> version
    consents: list[bool] = field(default_factory=list)
    refuse: Refusal | None = None

    async def remember(self, *, answer_id: str, version: str, header: bool, **_: Any) -> None:
        self.answers[answer_id] = version
        self.consents.append(header)

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        if self.refuse is None:
            self.rated.append(feedback)
        return self.refuse


@dataclass(frozen=True)
class OneKey:
    """The only key there is."""

    key: str
    id: str = "tester"

    def check(self, authorization: str | None) -> OneKey | None:
        return self if authorization == f"Bearer {self.key}" else None


@dataclass
class Site:
    """A served gateway and what stands behind it."""

    url: str
    backend: Told
    stable: Saying
    canary: Saying | None
    kept: Kept

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Bodies that replicas got."""
        both = [self.stable, *([self.canary] if self.canary else [])]
        return [body for replica in both for _, body, _ in replica.asked]


async def clean(parts: list[Any], held: Any) -> list[str]:
    """Media as they came: decoding them is tested elsewhere."""
    return [part.url for part in parts]


@pytest.fixture
def listen() -> Iterator[Callable[[Any], str]]:
    """listen(app) -> address of the application; ends with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=PATIENCE_S)


@pytest.fixture
def serve(listen: Callable[[Any], str]) -> Callable[..., Site]:
    """serve(canary=False, key=None, feedback=True) -> Site."""

    def start(*, canary: bool = False, key: str | None = None, feedback: bool = True) -> Site:
        made = [
            Saying(slot, f"{slot}-1", Version(id=VERSIONS[slot], path="", digest=""))
            for slot in ("stable", "canary")[: 1 + canary]
        ]
        backend, kept = Told(*made, model="glyphs", canary=0.25 if canary else 0.0), Kept()
        app = build(
            Settings(),
            backend,
            keys=OneKey(key) if key else None,
            clean=clean,
            feedback=kept if feedback else None,
            page=page.mount,
        )
        return Site(listen(app), backend, made[0], made[1] if canary else None, kept)

    return start
