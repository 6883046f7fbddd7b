"""The only thing that clients reach: OpenAI's API as a plain FastAPI application over a `Backend`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from serving.gateway import bodies, bounds, errors, schema
from serving.gateway.admission import Admission
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchanges, Parts
from serving.gateway.metrics import Metrics
from serving.gateway.middleware import Call, Guard
from serving.gateway.openapi import describe
from serving.gateway.protocols import Backend, Clean, FeedbackStore, Keys, Quotas, Selectors
from serving.gateway.streaming import Reply, while_connected
from serving.settings import Settings, is_loopback
from serving.wire import Capabilities, Kind, Standing


def build(
    settings: Settings,
    backend: Backend,
    *,
    keys: Keys | None = None,
    quotas: Quotas | None = None,
    clean: Clean | None = None,
    feedback: FeedbackStore | None = None,
    selectors: Selectors | None = None,
    capabilities: Mapping[str, Capabilities] | None = None,
    page: Callable[[FastAPI], None] | None = None,
    close: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application. What is None is switched off: no keys, no quotas, no media, no feedback...

    `capabilities`: of models by public name; one that is not listed is asked for anything.
    `page` adds the web page's own routes: / and what is under /page/, which need no key. `close` is called
    when the application ends.
    """
    metrics = Metrics()
    parts = Parts(
        settings=settings,
        backend=backend,
        metrics=metrics,
        quotas=quotas,
        clean=clean,
        feedback=feedback,
        selectors=selectors,
        capabilities=capabilities or {},
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(close)

    app = FastAPI(
        title="plumbline", version="1", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.add_middleware(Guard, keys=keys, local_only=is_loopback(settings.host), metrics=metrics)
    app.add_exception_handler(HTTPException, _http_error)
    _add_inference(app, parts, Admission(settings.load, metrics))
    _add_reading(app, backend, metrics, parts.capabilities)
    if page is not None:
        page(app)
    document = describe(settings, keyed=keys is not None)
    app.add_api_route("/openapi.json", lambda: JSONResponse(document), methods=["GET"])
    return app


def _add_inference(app: FastAPI, parts: Parts, admission: Admission) -> None:
    limits = parts.settings.limits
    exchanges = Exchanges(parts)

    def route(path: str, kind: Kind, adapter: TypeAdapter[Any]) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            with admission.bytes() as held:
                wanted = schema.parse(adapter, await bodies.read(request, limits, held))
                bounds.bound(wanted, limits)
                exchange = await exchanges.open(kind, plain(wanted), _call(request))
                with exchange.quota():
                    await while_connected(receive, _in_turn(admission, exchange.run(send, held)))

        async def reply() -> Reply:  # not a plain function: FastAPI calls those in threads
            return Reply(answer)

        app.add_api_route(path, reply, methods=["POST"], response_class=Response)

    route("/v1/chat/completions", "chat", schema.CHAT)
    route("/v1/completions", "completion", schema.COMPLETION)
    route("/v1/embeddings", "embedding", schema.EMBEDDING)

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        if parts.feedback is None:
            raise ApiError(404, "this server keeps no feedback", code="feedback_off")
        with admission.bytes() as held:
            given = schema.parse(schema.FEEDBACK, await bodies.read(request, limits, held))
        judged = plain(given)
        refusal = await parts.feedback.rate(client=_call(request).client.id, feedback=judged)
        if refusal is not None:
            raise ApiError.of(refusal)
        exchanges.judged(judged)
        return JSONResponse({"object": "feedback", "status": "kept"})


async def _in_turn(admission: Admission, work: Coroutine[Any, Any, None]) -> None:
    try:
        async with admission.turn():
            await work
    finally:
        work.close()  # it never ran when there was no turn


def _add_reading(
    app: FastAPI, backend: Backend, metrics: Metrics, capabilities: Mapping[str, Capabilities]
) -> None:
    def shown(name: str) -> dict[str, Any]:
        task = capabilities.get(name, Capabilities()).task
        return {"id": name, "object": "model", "created": 0, "owned_by": "plumbline", "task": task}

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [shown(name) for name in await backend.models()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        if model not in await backend.models():
            raise errors.no_such_model(model)
        return JSONResponse(shown(model))

    @app.get("/v1/versions")
    async def versions() -> Response:
        routes = [await backend.routing(name) for name in await backend.models()]
        body = {
            "object": "versions",
            "routing": [dataclasses.asdict(routing) for routing in routes if routing is not None],
            "replicas": [_replica(standing) for standing in await backend.standings()],
            "history": await backend.history(),
        }
        return JSONResponse(body)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        if not await backend.ready():
            raise ApiError(503, "no replica serves the promoted version yet; try again", code="not_ready")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type=metrics.media_type)


def plain(request: BaseModel) -> dict[str, Any]:
    """The fields that a client set, as an engine is to see them."""
    return request.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)


def _call(request: Request) -> Call:
    return request.scope["state"]["call"]


def _replica(standing: Standing) -> dict[str, Any]:
    """Without `detail`, which may name what is inside this machine."""
    return {
        "replica": standing.replica,
        "model": standing.model,
        "slot": standing.slot,
        "version": standing.version,
        "state": standing.state,
        "in_flight": standing.in_flight,
    }


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own errors (no such route, wrong method) under our error body."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = ApiError(405, f"{request.method} is not allowed here; GET /openapi.json lists the routes")
    else:
        problem = ApiError(404, "there is no such route; GET /openapi.json lists them")
    response = problem.response()
    response.headers.update(error.headers or {})
    return response
