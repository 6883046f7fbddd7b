"""A gateway over stub replicas in this process, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
from fastapi import FastAPI

from serving.gateway.gateway import build
from serving.gateway.stub import StubBackend, StubReplica
from serving.settings import Settings
from serving.wire import Version

BASE = "http://127.0.0.1:8000"
OLD = Version(id="v-aaaaaaaaaaaa", path="/models/old", digest="a" * 64)
NEW = Version(id="v-bbbbbbbbbbbb", path="/models/new", digest="b" * 64)
HELLO = {"model": "stub", "messages": [{"role": "user", "content": "hello"}]}

Result = TypeVar("Result")


class OneKey:
    """A file of keys with a single client in it."""

    id = "ann"
    consents = True

    def check(self, authorization: str | None) -> OneKey | None:
        return self if authorization == "Bearer sk-right" else None


def backend(*, canary: float | None = None, **options: Any) -> StubBackend:
    """Two stable replicas, and one of a canary if it has a weight."""
    replicas = [StubReplica("stable", name, OLD, **options) for name in ("a", "b")]
    if canary is not None:
        replicas.append(StubReplica("canary", "c", NEW, **options))
    return StubBackend(*replicas, canary=canary or 0.0)


def gateway(behind: StubBackend, settings: dict[str, Any] | None = None, **hooks: Any) -> FastAPI:
    return build(Settings.model_validate(settings or {}), behind, **hooks)


def http(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE, headers=headers)


def client(app: FastAPI, key: str = "sk-right", retries: int = 0) -> openai.AsyncOpenAI:
    """The official client; without retries unless they are what is tested."""
    return openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key=key, http_client=http(app), max_retries=retries)


def run(work: Callable[[], Awaitable[Result]]) -> Result:
    async def soon() -> Result:
        async with asyncio.timeout(30):
            return await work()

    return asyncio.run(soon())


async def post(app: FastAPI, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    async with http(app, **headers) as connection:
        return await connection.post(path, json=body)
