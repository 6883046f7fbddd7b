"""Answers on their way to the client: whole or as server-sent events, and no longer than it listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.gateway.errors import ApiError
from serving.gateway.middleware import ClientGone

DONE = b"data: [DONE]\n\n"


class Reply(Response):
    """A response that does its work while it is sent, so that everything it holds ends with it."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._work(scope, receive, send)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or until the client leaves: then it is cancelled. Raises ClientGone."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_whole(body: dict[str, Any], headers: Mapping[str, str], send: Send) -> None:
    """One JSON object."""
    content = _json(body)
    raw = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    await _start(raw, send)
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def send_events(chunks: AsyncIterator[dict[str, Any]], headers: Mapping[str, str], send: Send) -> None:
    """Chunks as server-sent events. Later errors are an event too: the status is already out."""
    await _start({"content-type": "text/event-stream", **headers}, send)
    try:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
    except ApiError as error:
        await send({"type": "http.response.body", "body": event(error.body()), "more_body": False})
        raise
    await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def _start(headers: Mapping[str, str], send: Send) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    # A byte-level model may spell half a surrogate pair, which UTF-8 has no bytes for.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
