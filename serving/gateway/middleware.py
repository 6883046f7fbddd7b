"""What every request passes: an id, the client's key, and an end without surprises."""

from __future__ import annotations

import ipaddress
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.keys import refuse_in_url
from serving.gateway import errors, logs
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.gateway.protocols import Client, Keys

OPEN = ("/", "/health", "/ready", "/favicon.ico")  # no key needed; nor for the files under /page/
GONE = 499  # in logs and metrics: the client left before its answer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ClientGone(Exception):
    """The client closed the connection."""


@dataclass(frozen=True)
class Anonymous:
    """Whoever asks a server without keys."""

    id: str = "anonymous"
    consents: bool = False


@dataclass
class Call:
    """One HTTP request."""

    request_id: str  # the client's own if it sent a usable one
    answer_id: str = field(
        default_factory=lambda: uuid.uuid4().hex
    )  # ours, so that nobody can take another's
    client: Client = field(default_factory=Anonymous)
    consents: bool = False  # to its answer being kept, by the header x-plumbline-consent
    started: float = field(default_factory=time.monotonic)
    fields: dict[str, Any] = field(default_factory=dict)  # for the log line

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Guard:
    """Raw ASGI middleware around the whole application.

    With `keys`, all but a few paths need one. Without, a server on loopback answers only to its own names: a
    web page from elsewhere must not reach it by a name that resolves to this machine.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, local_only: bool, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._local_only = local_only and keys is None
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        call = Call(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        call.consents = headers.get("x-plumbline-consent", "").lower() == "yes"
        scope.setdefault("state", {})["call"] = call
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), call)
            await send(message)

        try:
            self._admit(scope, headers, call)
            await self._app(scope, receive, named)
        except ClientGone:
            status = GONE
        except ApiError as error:
            await _respond(error, status, call, self._metrics, scope, receive, named)
        except Exception as error:
            logs.failure("internal error", error, request_id=call.request_id)
            problem = errors.internal(call.request_id)
            await _respond(problem, status, call, self._metrics, scope, receive, named)
        finally:
            self._note(scope, call, status)

    def _admit(self, scope: Scope, headers: Headers, call: Call) -> None:
        if self._local_only and not _is_local(headers.get("host", "")):
            raise ApiError(
                403,
                "Host: without keys this server answers only under localhost or an address; "
                "configure keys to use another name",
            )
        path = scope["path"]
        if self._keys is not None:
            refuse_in_url(scope["query_string"])
        if self._keys is None or path in OPEN or path.startswith("/page/"):
            return
        given = headers.getlist("authorization")
        client = self._keys.check(given[0] if len(given) == 1 else None)
        if client is None:
            what = "is not known here" if given else "is missing"
            raise ApiError(401, f"Authorization: the API key {what}; send 'Authorization: Bearer KEY'")
        call.client = client

    def _note(self, scope: Scope, call: Call, status: int) -> None:
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(call.seconds)
        logs.event(
            "request",
            request_id=call.request_id,
            method=scope["method"],
            route=route,
            status=status,
            client=call.client.id,
            seconds=round(call.seconds, 4),
            **call.fields,
        )


async def _respond(
    error: ApiError, started: int, call: Call, metrics: Metrics, scope: Scope, receive: Receive, send: Send
) -> None:
    metrics.refused.labels(error.code).inc()
    call.fields["code"] = error.code
    if not started:  # else the client has half an answer, and sees that it breaks off
        await error.response()(scope, receive, send)


def _add_headers(headers: MutableHeaders, call: Call) -> None:
    headers["x-request-id"] = call.request_id
    headers["x-content-type-options"] = "nosniff"
    headers.setdefault("cache-control", "no-store")


def _is_local(host: str) -> bool:
    """localhost, or an address instead of a name."""
    name = re.sub(r":\d*$", "", host).strip("[]")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True
