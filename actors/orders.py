"""Orders of prompts that a run decided on, kept for whoever resumes it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pipelines import durable


async def kept(
    file: Path | None, stage: int, cursor: int, survey: Callable[[], Awaitable[list[int]]]
) -> tuple[list[int], int]:
    """A stage's order, and the position it begins at: as `file` has it, else `survey`'s from `cursor` on.

    A resumed run would survey by newer weights and find another one. Without a file nothing is kept.
    """
    known: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    if str(stage) not in known:
        known[str(stage)] = {"start": cursor, "order": await survey()}
        if file:
            with durable.swapped(file) as partial:
                partial.write_text(json.dumps(known))
    block = known[str(stage)]
    return block["order"], block["start"]
