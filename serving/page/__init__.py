"""The web page beside the API: chat with a picture, a blind comparison, and the history of promotions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "mount"]

_FOLDER = Path(__file__).parent

#: The page runs its own files, talks to its own server and shows pictures it was given; nothing else.
#: Trusted types: an assignment of text to innerHTML, by a slip of ours, throws instead of making elements.
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # after an upgrade no old script talks to the new API
}


def mount(app: FastAPI) -> None:
    """Serve the page at / and its files under /page/. Neither needs a key: they say nothing of the server."""

    async def index() -> Response:
        return FileResponse(_FOLDER / "index.html", headers=HEADERS)

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/page", _Guarded(StaticFiles(directory=_FOLDER / "static")))


class _Guarded:
    """Adds the page's headers to whatever `app` answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)
