"""Request bodies, read under bounds on size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from serving.gateway import strict_json
from serving.gateway.admission import MIB, Held
from serving.gateway.errors import ApiError
from serving.gateway.middleware import ClientGone
from serving.limits import Limits


async def read(request: Request, limits: Limits, held: Held) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError (400, 408, 413, 415, 503) and ClientGone."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        # Browsers send other types across sites without asking; this one they ask for, and are refused.
        raise ApiError(415, "Content-Type: expected application/json; send the request as JSON")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Content-Encoding: compressed requests are not taken; send the body as it is")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > limits.body_mib * MIB:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await _collect(request, limits, held)
    except TimeoutError:
        raise ApiError(408, f"body: not complete after {limits.body_timeout_s:g} s; send it faster") from None
    return strict_json.parse(body, limits)


async def _collect(request: Request, limits: Limits, held: Held) -> bytearray:
    body = bytearray()  # a list of parts would cost fifty times as much for parts of one byte
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        held.add(len(part))
        if held.size > limits.body_mib * MIB:
            raise _too_large(limits)
        body += part
        if not message.get("more_body", False):
            return body


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"body: at most {limits.body_mib} MiB; send fewer or smaller media")
