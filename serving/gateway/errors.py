"""Errors that clients may see: OpenAI's error body, in words, without anything about this machine."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from serving.wire import Refusal

SHOWN = 60  # characters of a client's value that an error repeats

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "overloaded",
    504: "timeout",
}

#: Fields that other servers take, and why this one does not.
REFUSED = {
    "chat_template": "the chat template belongs to the model",
    "chat_template_kwargs": "the chat template belongs to the model",
    "add_generation_prompt": "the chat template belongs to the model",
    "continue_final_message": "the chat template belongs to the model",
    "add_special_tokens": "special tokens belong to the chat template",
    "prompt_embeds": "prompts are text, or token ids in /v1/completions",
    "mm_processor_kwargs": "how media are processed belongs to the model",
    "media_io_kwargs": "how media are decoded belongs to the server",
    "guided_json": "use response_format with type json_schema",
    "guided_regex": "use response_format with type json_schema",
    "guided_choice": "use response_format with type json_schema",
    "guided_grammar": "use response_format with type json_schema",
    "structured_outputs": "use response_format with type json_schema",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "best_of": "use n, or a selector in plumbline",
}


class ApiError(Exception):
    """An answer that is an error. The message says where, what, got, expected and how to fix it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status, "error")
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, refusal: Refusal) -> ApiError:
        """The same refusal, for a client. A status that clients are not told of becomes 500."""
        status = refusal.status if refusal.status in CODES else 500
        return cls(status, refusal.message, code=refusal.code, retry_after_s=refusal.retry_after_s)

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self.status in (429, 503):
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s or 1.0)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status == 408:
            headers["connection"] = "close"  # the rest of the body is not waited for
        return headers

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers())


def internal(request_id: str) -> ApiError:
    """Something broke here; the log has the rest under the same id."""
    return ApiError(500, f"internal error; report it with the request id {request_id}")


def no_such_model(model: str) -> ApiError:
    return ApiError(
        404,
        f"model: there is no model {shown(model)}; GET /v1/models lists them",
        param="model",
        code="model_not_found",
    )


def invalid(error: ValidationError, given: Any, known: Iterable[str]) -> ApiError:
    """The first problem of a request; `known` are the field names that a typing error may have meant."""
    problems = error.errors(include_url=False, include_context=True)
    problem = problems[0]
    where = _where(tuple(problem["loc"]), given, problem["type"] == "missing")
    text = _what(dict(problem), known)
    if not where and problem["type"] == "value_error":  # our own checks of a whole request name their field
        where = text.partition(":")[0]
    else:
        text = f"{where or 'body'}: {text}"
    if len(problems) > 1:
        text += f" (and {len(problems) - 1} more)"
    return ApiError(400, text, param=where or None)


def shown(value: Any) -> str:
    """A client's value, short and on one line."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def path(*parts: str | int) -> str:
    """messages[0].content[1]"""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _where(location: tuple[str | int, ...], given: Any, missing: bool) -> str:
    """The path of a problem in what was sent: pydantic also lists the choices it took on the way."""
    parts: list[str | int] = []
    for depth, step in enumerate(location):
        inside: dict[Any, Any] = dict(enumerate(given)) if isinstance(given, list) else {}
        inside = given if isinstance(given, dict) else inside
        if step in inside:
            given = inside[step]
        elif not (missing and depth == len(location) - 1):
            continue
        parts.append(step)
    return shown_path(path(*parts))


def shown_path(text: str) -> str:
    """A path may hold a client's own key of any length."""
    clean = text.encode("unicode_escape").decode()
    return clean if len(clean) <= 2 * SHOWN else clean[: 2 * SHOWN - 3] + "..."


def _what(problem: dict[str, Any], known: Iterable[str]) -> str:
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        field = str(problem["loc"][-1])
        if field in REFUSED:
            return f"this field is not accepted: {REFUSED[field]}; remove it"
        close = difflib.get_close_matches(field, list(known), n=1, cutoff=0.75)
        return "unknown field; " + (f"did you mean {close[0]}?" if close else "remove it")
    if kind == "missing":
        return "this field is required and missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        message = "expected an object"
    if kind == "union_tag_invalid":
        message = f"expected one of {problem['ctx']['expected_tags']}"
        return f"{message}, got {shown(problem['ctx']['tag'])}"
    if kind == "union_tag_not_found":
        return f"expected an object with {problem['ctx']['discriminator']}, got {shown(problem['input'])}"
    if kind == "too_short":
        return "expected at least one item, got none"
    expected = message.replace("Input should be", "expected").replace(
        "String should", "expected text that should"
    )
    expected = expected.replace("a valid string", "text").replace("a valid list", "a list")
    return f"{expected}, got {shown(problem['input'])}"
