"""JSON from strangers: what Python's parser lets pass and a model must not see is refused by name."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from serving.gateway.errors import ApiError, path, shown, shown_path
from serving.limits import Limits

#: A place in the body as a chain of keys, so that long keys cost nothing until an error names them.
_Place = tuple["_Place", str | int] | None

_SURROGATES = re.compile("[\ud800-\udfff]")


def parse(body: bytes | bytearray, limits: Limits) -> dict[str, Any]:
    """The object in `body`. Raises ApiError (400).

    Refused: text that is not UTF-8, a byte order mark, NaN and infinite numbers, duplicate keys, lone
    surrogates, NUL characters, and more depth or values than the limits allow.
    """
    # Values are separated by these, so that their number is bounded before memory is spent on them.
    if sum(map(body.count, (b",", b"[", b"{"))) > limits.json_values:
        raise ApiError(400, f"body: at most {limits.json_values} JSON values per request")
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: expected UTF-8, got something else at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ApiError(400, f"body: not JSON at {where}: {error.msg}") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError:  # more digits than Python converts
        raise ApiError(400, "body: a number has too many digits") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"body: expected a JSON object, got {shown(value)}")
    _check(value, limits)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ApiError(400, f"body: the key {shown(twice)} occurs twice in one object; keep one")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ApiError(400, f"body: {name} is not JSON; numbers are finite")


def _check(value: dict[str, Any], limits: Limits) -> None:
    """Depth, texts and numbers; without recursion, since depth is what is checked."""
    level: list[tuple[_Place, Any]] = [(None, value)]
    for _ in range(limits.json_depth):
        inner: list[tuple[_Place, Any]] = []
        for place, one in level:
            if isinstance(one, dict):
                for key, child in one.items():
                    _check_text(place, key)
                    inner.append(((place, key), child))
            elif isinstance(one, list):
                inner.extend(((place, index), child) for index, child in enumerate(one))
            elif isinstance(one, str):
                _check_text(place, one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise _refused(place, "expected a finite number, got one too large")
        if not inner:
            return
        level = inner
    raise _too_deep(limits)


def _check_text(place: _Place, text: str) -> None:
    if "\0" in text:
        raise _refused(place, "text holds a NUL character; remove it")
    if not text.isascii() and _SURROGATES.search(text):
        raise _refused(place, "text holds half of a surrogate pair, which is no character; remove it")


def _refused(place: _Place, what: str) -> ApiError:
    steps: list[str | int] = []
    while place is not None:
        place, step = place
        steps.append(step)
    where = shown_path(path(*reversed(steps))) or "body"
    return ApiError(400, f"{where}: {what}", param=where)


def _too_deep(limits: Limits) -> ApiError:
    return ApiError(400, f"body: nested too deeply; at most {limits.json_depth} levels")
