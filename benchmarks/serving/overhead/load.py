"""Requests under load: so many at once, or at a rate whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx

from benchmarks.serving.overhead.servers import MODEL
from benchmarks.serving.questions import describe
from pipelines.worlds.glyphs import Glyphs

Content = Literal["text", "picture"]
CONTENTS: tuple[Content, ...] = ("text", "picture")
PATH = "/v1/chat/completions"
HEADERS = {"content-type": "application/json"}
MAX_TOKENS = 24
SCENES = 256  # different prompts; they come again, so that caches are as warm as a busy server's


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of load. `at_once`: requests under way; None: an open loop at a rate."""

    content: Content
    stream: bool
    at_once: int | None

    @property
    def load(self) -> str:
        return "open loop" if self.at_once is None else f"{self.at_once} at once"

    @property
    def asked(self) -> str:
        return f"{self.content}, {'streamed' if self.stream else 'whole'}"


@dataclass(kw_only=True)
class Block:
    """What one server answered in one stretch of load; seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list[float])  # until the last byte
    firsts: list[float] = field(default_factory=list[float])  # until the first byte of the body


def bodies(content: Content, stream: bool) -> list[bytes]:
    """Greedy chats about held-out scenes: the picture to be described, or its caption to be gone on from."""
    world = Glyphs()
    return [
        _body(describe(world.image(row)) if content == "picture" else str(row["answer"]), stream)
        for row in world.rows("heldout", SCENES, 0, "caption")
    ]


def _body(content: object, stream: bool) -> bytes:
    messages = [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    return json.dumps({**body, "stream": stream}).encode()


class NotWhole(Exception):
    """An error, or an answer that broke off."""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, verify=False) as client:
        yield client


async def texts(url: str, asked: Sequence[bytes]) -> list[str]:
    """The answers to whole (not streamed) chats, asked one after the other."""
    async with connected(url) as client:
        answers = [await client.post(PATH, content=body, headers=HEADERS) for body in asked]
    return [answer.raise_for_status().json()["choices"][0]["message"]["content"] for answer in answers]


async def drive(url: str, asked: Sequence[bytes], cell: Cell, seconds: float, rate: float) -> Block:
    """One stretch of load on one server. Raises SystemExit where a request fails: that is no measurement."""
    block, began = Block(), time.perf_counter()
    try:
        async with connected(url) as client, asyncio.TaskGroup() as group:
            if cell.at_once is None:
                await _open_loop(group, client, asked, block, seconds, rate)
            else:
                source = itertools.cycle(asked)
                for _ in range(cell.at_once):
                    group.create_task(_one_after_another(client, source, block, began + seconds))
    except* (NotWhole, httpx.TransportError) as failed:
        raise SystemExit(f"{url}: {failed.exceptions[0]!r}") from None
    block.seconds = time.perf_counter() - began
    return block


async def _one_after_another(
    client: httpx.AsyncClient, source: Iterator[bytes], block: Block, end: float
) -> None:
    while time.perf_counter() < end:
        await _ask(client, next(source), block, time.perf_counter())


async def _open_loop(
    group: asyncio.TaskGroup,
    client: httpx.AsyncClient,
    asked: Sequence[bytes],
    block: Block,
    seconds: float,
    rate: float,
) -> None:
    """Poisson arrivals, the same for every server; latency counts from when a request was due."""
    dice, due, began = random.Random(0), 0.0, time.perf_counter()
    for body in itertools.cycle(asked):
        due += dice.expovariate(rate)
        if due > seconds:
            return
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        group.create_task(_ask(client, body, block, began + due))


async def _ask(client: httpx.AsyncClient, body: bytes, block: Block, due: float) -> None:
    first = None
    async with client.stream("POST", PATH, content=body, headers=HEADERS) as answer:
        tail = b""
        async for piece in answer.aiter_raw():
            first = first or time.perf_counter()
            tail = (tail + piece)[-64:]
    whole = b"[DONE]" in tail if b'"stream": true' in body else tail.endswith(b"}")
    if answer.status_code != 200 or first is None or not whole:
        raise NotWhole(f"an answer is not whole (status {answer.status_code}): {tail!r}")
    block.firsts.append(first - due)
    block.latencies.append(time.perf_counter() - due)
