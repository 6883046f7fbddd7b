"""Serve's own routes are closed, and nothing else is."""

from __future__ import annotations

import asyncio
import runpy

import httpx
import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serving.front import CALLBACK, CHECKED_EVERY, environment, middlewares


def test_serves_proxy_finds_and_takes_it() -> None:
    path = environment()[CALLBACK]
    assert len(validate_http_proxy_callback_return(call_function_from_import_path(path))) == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_serve_checks_its_proxy_as_often_as_we_say_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    (variable,) = CHECKED_EVERY
    for seconds in ("2", "7"):
        for name, value in environment().items():
            monkeypatch.setenv(name, value)
        constants = runpy.run_module("ray.serve._private.constants")
        assert constants["PROXY_HEALTH_CHECK_PERIOD_S"] == float(seconds)
        monkeypatch.setenv(variable, "7")


@pytest.mark.parametrize(("path", "status"), [("/-/routes", 404), ("/-/healthz", 404), ("/v1/models", 200)])
def test_control_routes_are_closed(path: str, status: int) -> None:
    def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(routes=[Route("/{rest:path}", answer)], middleware=middlewares())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get(path)

    response = asyncio.run(ask())
    assert response.status_code == status
    if status == 404:
        assert response.json()["error"]["code"] == "not_found"
