"""Requests at a constant rate, whatever becomes of those before them, and what came back for each try."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

RETRIES = 2
PAUSE_S = 1.0  # before another try where the answer names no Retry-After
TIMEOUT_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Try:
    """One HTTP request. Times are monotonic seconds."""

    began: float
    ended: float
    status: int  # 0: no HTTP answer
    code: str = ""  # of the error, also of one inside a stream
    versions: tuple[str, ...] = ()  # in the header first, then in each chunk
    text: str = ""
    whole: bool = False  # it came to its end

    @property
    def good(self) -> bool:
        return self.status == 200 and self.whole


@dataclass(kw_only=True)
class Request:
    """One question, tried until it is answered, RETRIES + 1 times at most."""

    number: int
    stream: bool
    due: float  # when it was to be sent
    tries: list[Try] = field(default_factory=list[Try])


@dataclass
class Load:
    """Open loop: `rate` requests a second, every second one a stream. A request that finds `at_once` others
    under way waits, and is late.

    `body`: the n-th request.
    """

    url: str
    rate: float
    body: Callable[[int], dict[str, Any]]
    at_once: int = 256
    requests: list[Request] = field(default_factory=list[Request])

    async def run(self, seconds: float) -> None:
        """Send for so long, and wait for all answers."""
        places = asyncio.Semaphore(self.at_once)
        async with self._client() as client, asyncio.TaskGroup() as group:
            for request in self._planned(seconds):
                await asyncio.sleep(max(0.0, request.due - time.monotonic()))
                await places.acquire()
                self.requests.append(request)
                task = group.create_task(self._ask(client, request))
                task.add_done_callback(lambda _: places.release())

    async def saturate(self, seconds: float) -> None:
        """Closed loop instead: `at_once` clients, each of which asks again as soon as it is answered."""
        until = time.monotonic() + seconds

        async def ask_on(client: httpx.AsyncClient) -> None:
            while (now := time.monotonic()) < until:
                number = len(self.requests)
                self.requests.append(Request(number=number, stream=number % 2 == 1, due=now))
                await self._ask(client, self.requests[number])

        async with self._client() as client, asyncio.TaskGroup() as group:
            for _ in range(self.at_once):
                group.create_task(ask_on(client))

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self.at_once)
        return httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits)

    def _planned(self, seconds: float) -> Iterator[Request]:
        began = time.monotonic()
        for number in range(round(seconds * self.rate)):
            yield Request(number=number, stream=number % 2 == 1, due=began + number / self.rate)

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> None:
        body = self.body(request.number) | {"stream": request.stream}
        while True:
            attempt, pause = await _tried(client, body)
            request.tries.append(attempt)
            if attempt.good or len(request.tries) > RETRIES:
                return
            await asyncio.sleep(pause)


class _Seen:
    """What is known of a try so far; a connection may end at any byte."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.status, self.code, self.whole, self.pause = 0, "", False, PAUSE_S
        self.versions: list[str] = []
        self.texts: list[str] = []

    def head(self, response: httpx.Response) -> None:
        self.status = response.status_code
        if (named := response.headers.get("x-plumbline-version")) is not None:
            self.versions.append(named)
        with suppress(ValueError):
            self.pause = float(response.headers.get("retry-after", PAUSE_S))

    def take(self, value: dict[str, Any]) -> None:
        """An OpenAI object, or an error."""
        if "error" in value:
            self.code = str(value["error"].get("code"))
            return
        self.versions.append(str(value.get("system_fingerprint")))
        for choice in value.get("choices", ()):
            said = choice.get("delta") or choice.get("message") or {}
            self.texts.append(said.get("content") or "")

    def result(self) -> Try:
        return Try(
            began=self.began,
            ended=time.monotonic(),
            status=self.status,
            code=self.code,
            versions=tuple(dict.fromkeys(self.versions)),
            text="".join(self.texts),
            whole=self.whole and not self.code,
        )


async def _tried(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Try, float]:
    seen = _Seen()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            seen.head(response)
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await _read_events(response, seen)
            else:
                seen.take(json.loads(await response.aread()))
                seen.whole = True
    except httpx.HTTPError as error:
        seen.code = f"connection:{type(error).__name__}"
    except ValueError:  # an answer that is no JSON, of the proxy itself
        seen.code = "not_json"
    return seen.result(), seen.pause


async def _read_events(response: httpx.Response, seen: _Seen) -> None:
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            seen.whole = True
        elif data:
            seen.take(json.loads(data))
