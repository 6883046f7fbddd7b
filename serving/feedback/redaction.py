"""The redaction hook: every text passes it before it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pipelines.data.served import Event
from pipelines.user_files import load_function

Redact = Callable[[str], str]

TEXTS: Final = ("answer", "correction", "comment")


def load_redaction(name: str) -> Redact:
    """The function of a `package.module:function` or `path/to/file.py:function`. Raises SettingsError."""
    return load_function("feedback.redact", name, "a text", "")


def redacted(event: Event, redact: Redact) -> Event:
    """The event with every text as the hook gives it back. Raises whatever the hook raises."""

    def text(given: str) -> str:
        found = redact(given)
        if not isinstance(found, str):
            raise TypeError("expected a text")
        return found

    def part(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "text": text(given["text"])} if given["type"] == "text" else given

    clean = {key: text(value) if key in TEXTS else value for key, value in event.items()}
    if "messages" in event:
        turns = event["messages"]
        clean["messages"] = [{**turn, "content": [part(p) for p in turn["content"]]} for turn in turns]
    return clean
