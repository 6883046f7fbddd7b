"""A reward of one's own: a function of the prompt, the response text and the data row."""

from __future__ import annotations

import re
from typing import Any

COLOURS = "red|green|blue"
DIGITS = "zero|one|two|three|four|five|six|seven|eight|nine"


def score(prompt: list[dict[str, Any]], response: str, row: dict[str, Any]) -> float:
    """Objects named that are there, minus those that are not, minus those left out.

    `row` holds the free columns of data.jsonl; here `objects`, such as ["red seven", "blue one"]. It may be
    `async def`. An exception or NaN makes the score missing, which is counted and never taken for 0.
    """
    there = list(row["objects"])
    named = re.findall(f"(?:{COLOURS}) (?:{DIGITS})", response)
    right = 0
    for name in named:
        if name in there:
            there.remove(name)
            right += 1
    return float(right - (len(named) - right) - len(there))
