"""What an answer to any request must be: a documented status, an error body, nothing about the machine."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.shots import Shot

UNAVAILABLE = (503, 504)  # the only errors that are the server's fault and still right
#: Statuses of requests for which no route is described.
NO_ROUTE = (403, 404, 405)

LEAKS = {
    "path": re.compile(
        r"(?:/(?:home|root|usr|work|tmp|var|opt|etc|proc)/[\w.-]+|[\w/]+\.py\b|site-packages)"
    ),
    "traceback": re.compile(r"Traceback|\bFile \\?\"|line \d+, in "),
    "class": re.compile(
        r"<class|<[\w.]+ object|\b[A-Z]\w+(?:Error|Exception)\b|\b[a-z_]+(?:\.[a-z_]+)+\.[A-Z]\w+"
    ),
    "address": re.compile(r"\b0x[0-9a-f]{6,}\b|\b\d{1,3}(?:\.\d{1,3}){3}\b"),
    "library": re.compile(r"pydantic|starlette|fastapi|uvicorn|vllm|\bray\b", re.IGNORECASE),
}


@dataclass
class Tally:
    """Counts, and the first violations in words."""

    statuses: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, shot: Shot, status: int, text: str, problems: list[str]) -> None:
        self.statuses[status] += 1
        self.labels[shot.label.split(" ")[0]] += 1
        for problem in problems:
            self.violations[problem.partition(":")[0]] += 1
            if len(self.examples) < 20:
                sent = shot.body[:200].decode("utf-8", "backslashreplace")
                self.examples.append(
                    f"{problem}\n  {shot.label}: {shot.method} {shot.path[:80]} {sent}\n  {text[:300]}"
                )


class Judge:
    """Knows the API's own description."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._documented: dict[tuple[str, str], set[int]] = {}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if method != "parameters":
                    statuses = {int(status) for status in operation["responses"]}
                    self._documented[method.upper(), path.partition("{")[0]] = statuses

    def problems(self, shot: Shot, status: int, text: str) -> Iterator[str]:
        """Everything that is wrong with an answer."""
        allowed = self._allowed(shot)
        if status not in allowed:
            yield f"undocumented status: {status}, documented are {sorted(allowed)}"
        if status >= 500 and status not in UNAVAILABLE:
            yield f"server error: {status}"
        if '"engine_failed"' in text:  # whatever is asked for, the engine refuses it or answers
            yield f"engine failure: {status}"
        if shot.expected and status not in shot.expected:
            yield f"wrong status: {status}, expected {shot.expected}"
        if status >= 400:
            yield from _error_problems(text)
            yield from self._leaks(shot, text)

    def _allowed(self, shot: Shot) -> set[int]:
        path = shot.path.partition("?")[0]
        exact = self._documented.get((shot.method, path))
        if exact is None and path.startswith("/v1/models/"):
            exact = self._documented.get((shot.method, "/v1/models/"))
        return exact or set(NO_ROUTE)

    @staticmethod
    def _leaks(shot: Shot, text: str) -> Iterator[str]:
        sent = shot.body.decode("utf-8", "replace") + shot.path
        for name, pattern in LEAKS.items():
            for found in pattern.findall(text):
                if found not in sent:  # what a client sent may come back to it
                    yield f"leak of a {name}: {found}"


def _error_problems(text: str) -> Iterator[str]:
    try:
        error = json.loads(text)["error"]
        right = set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        yield "no error body: expected OpenAI's"
