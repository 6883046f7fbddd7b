"""Serve's HTTP proxy, which is before everything: its own control routes are closed to clients.

The proxy answers /-/routes and /-/healthz by itself, before any gateway. It finds this module through an
environment variable, which has to be set where Serve starts.
"""

from __future__ import annotations

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.gateway.errors import ApiError

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
#: Three checks that fail, and Serve replaces the proxy: at its own 10 s nobody is answered for half a minute.
CHECKED_EVERY = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2"}


def environment() -> dict[str, str]:
    """For the processes of Serve; how often its proxy is checked stays as the user has set it."""
    kept = {key: os.environ.get(key, value) for key, value in CHECKED_EVERY.items()}
    return kept | {CALLBACK: "serving.front.middlewares"}


class Closed:
    """Answers 404 to whatever is under /-/."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/-/"):
            answer = ApiError(404, "there is no such route; GET /openapi.json lists them").response()
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For Serve's proxy."""
    return [Middleware(Closed)]
