"""Held-out evaluation on a world: greedy answers of the generators, judged by the world's exact verifiers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.heldout import heldout_rows as heldout_rows
from actors.heldout import verified
from actors.remote import named
from pipelines.data.glyphs import GlyphsSource
from pipelines.journal import Journal

CHUNK = 250  # items per call: long enough to fill an engine, short enough to spread over generators


@ray.remote(num_cpus=0)
def judge(
    rows: list[dict[str, Any]], generator: Any, max_tokens: int, timeout_s: float
) -> list[dict[str, Any]]:
    """The records of some rows, see `verified`."""
    source = GlyphsSource(count=len(rows), seed=0)
    prompts = [source.prompt(row) for row in rows]
    return verified(rows, ray.get(generator.greedy.remote(prompts, max_tokens), timeout=timeout_s))


async def evaluate(
    generators: Sequence[Any], rows: Sequence[dict[str, Any]], path: Path, max_tokens: int, timeout_s: float
) -> list[dict[str, Any]]:
    """Judge all rows, spread over the generators; the records go to `path` in the order of the rows.

    Raises RoleFailed with what a generator failed on.
    """
    chunks = [list(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    lanes = [asyncio.Semaphore(2) for _ in generators]  # two chunks in flight keep an engine busy

    async def one(position: int, chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lane = position % len(generators)
        async with lanes[lane]:
            try:
                return await judge.remote(chunk, generators[lane], max_tokens, timeout_s)
            except Exception as error:
                raise named(error, f"evaluation by generator-{lane}") from error

    judged = await asyncio.gather(*(one(position, chunk) for position, chunk in enumerate(chunks)))
    records = [record for chunk in judged for record in chunk]
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    return records
