"""One JSON line per event, for machines. Prompts and answers stay out unless the settings say otherwise."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("plumbline.serving")


class JsonLines(logging.Formatter):
    """`LOGGER.info(event, extra={"fields": {...}})` as one line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "fields", {})}, default=str)


def to_stderr() -> None:
    """Send the server's log lines to standard error, once per process."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)


def event(name: str, **fields: Any) -> None:
    LOGGER.info(name, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


def failure(name: str, error: BaseException, **fields: Any) -> None:
    """Where something broke and of what type, without the exception's text: it may quote a request."""
    frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    extra = {**fields, "error": type(error).__name__, "frames": frames[-12:]}
    LOGGER.error(name, extra={"fields": extra})
