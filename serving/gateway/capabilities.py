"""What a model cannot do is the client's error, said before an engine sees the request."""

from __future__ import annotations

from typing import Any, get_args

from pipelines.types import MediaKind
from serving.gateway.bounds import media_kinds
from serving.gateway.errors import ApiError, shown
from serving.wire import Capabilities, Kind

MEDIA: tuple[MediaKind, ...] = get_args(MediaKind)


def require(kind: Kind, body: dict[str, Any], can: Capabilities) -> None:
    """Raises ApiError (400) where the model of a validated body is asked for what it does not do."""
    name = shown(body["model"])
    if can.task == "embed" and kind != "embedding":
        problem = (
            f"model: {name} embeds texts and writes none; ask it at /v1/embeddings, or name another model"
        )
        raise ApiError(400, problem, param="model", code="unsupported_endpoint")
    if can.task == "generate" and kind == "embedding":
        problem = (
            f"model: {name} writes answers and embeds no texts; ask it at /v1/chat/completions, or name "
            "another model"
        )
        raise ApiError(400, problem, param="model", code="unsupported_endpoint")
    if body.get("tools") and not can.tools:
        problem = f"tools: {name} is served without tool calls; remove tools, or name another model"
        raise ApiError(400, problem, param="tools", code="tools_unsupported")
    if kind == "chat":
        _require_media(body, can)


def _require_media(body: dict[str, Any], can: Capabilities) -> None:
    for medium, where in media_kinds(body):
        if medium not in can.media:
            taken = ", ".join(["text", *(each for each in MEDIA if each in can.media)])
            problem = (
                f"{where}: {shown(body['model'])} takes no {medium}; it takes {taken}. Remove it, or name "
                "another model"
            )
            raise ApiError(400, problem, param=where, code="media_unsupported")
