"""The API's own description (OpenAPI 3.1): every route with every status that it can answer with."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from serving.gateway import schema
from serving.settings import Settings

REF = "#/components/schemas/"
ANY_ROUTE = (400, 403, 500)
BODY = (400, 408, 413, 415, 503)
MEANING = {
    400: "The request is malformed, or asks for more than the limits allow",
    401: "No API key, or an unknown one",
    403: "The server does not answer under this name",
    404: "No such model, version or answer",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The client's quota is used up; see Retry-After",
    500: "Something broke in the server",
    503: "Overloaded or not ready; see Retry-After",
    504: "The answer took too long",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def describe(settings: Settings, *, keyed: bool) -> dict[str, Any]:
    """The document that GET /openapi.json answers with."""
    components: dict[str, Any] = {"Error": ERROR, "Object": {"type": "object"}}
    posts = {
        "/v1/chat/completions": (schema.CHAT, "ChatRequest", (404, 429, 504)),
        "/v1/completions": (schema.COMPLETION, "CompletionRequest", (404, 429, 504)),
        "/v1/embeddings": (schema.EMBEDDING, "EmbeddingRequest", (404, 429, 504)),
        "/v1/feedback": (schema.FEEDBACK, "FeedbackRequest", (404,)),
    }
    paths: dict[str, Any] = {}
    for path, (adapter, name, statuses) in posts.items():
        _add_schema(components, name, adapter)
        content = {"application/json": {"schema": {"$ref": REF + name}}}
        body = {"required": True, "content": content}
        streams = path in ("/v1/chat/completions", "/v1/completions")
        paths[path] = {"post": {"requestBody": body, **_operation((*BODY, *statuses), keyed, streams)}}
    for path, statuses in (
        ("/v1/models", ()),
        ("/v1/models/{model}", (404,)),
        ("/v1/versions", ()),
        ("/openapi.json", ()),
    ):
        paths[path] = {"get": _operation(statuses, keyed)}
    paths["/v1/models/{model}"]["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]
    paths["/metrics"] = {"get": _operation((), keyed, media="text/plain")}
    paths["/health"] = {"get": _operation((), False)}
    paths["/ready"] = {"get": _operation((503,), False)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "plumbline", "version": "1", "description": _limits(settings)},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _operation(
    statuses: tuple[int, ...], keyed: bool, streams: bool = False, media: str = "application/json"
) -> dict[str, Any]:
    content: dict[str, Any] = {media: {"schema": {"$ref": REF + "Object"} if "json" in media else {}}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "An answer", "content": content}}
    failure = {"application/json": {"schema": {"$ref": REF + "Error"}}}
    for status in sorted({*ANY_ROUTE, *statuses, *((401,) if keyed else ())}):
        responses[str(status)] = {"description": MEANING[status], "content": failure}
    operation: dict[str, Any] = {"responses": responses}
    return {**operation, "security": [{"key": []}]} if keyed else operation


def _add_schema(components: dict[str, Any], name: str, adapter: TypeAdapter[Any]) -> None:
    found = adapter.json_schema(ref_template=REF + "{model}", by_alias=True)
    components |= found.pop("$defs", {})
    components[name] = found


def _limits(settings: Settings) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in settings.limits.model_dump().items())
    return f"OpenAI-compatible API. Limits of one request: {listed}."
