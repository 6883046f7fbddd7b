"""Append-only JSON-lines files of a run: one object per line, flushed at once, readable after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import durable


class Journal:
    """Appends events to a file. Several journals of one process may share a folder, never a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            durable.mend(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, event: str, **fields: Any) -> None:
        """One line: `{"event": ..., "at": seconds since the epoch, ...}`."""
        self.append({"event": event, "at": round(time.time(), 3), **fields})

    def append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file; nothing if it does not exist. A torn last line (crash) is left out."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")  # a crash may cut a character in two
    lines = text.removesuffix("\n").split("\n")  # not splitlines: texts hold U+2028
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON object ({error.msg})") from error
