"""What Serve's HTTP proxy puts before everything: its own control routes are closed to clients.

The proxy answers /-/routes and /-/healthz by itself, before any gateway. It finds this module through the
environment variable `VARIABLE`, which has to be set where the proxy starts.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.gateway.errors import ApiError

VARIABLE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.front.middlewares"}


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
