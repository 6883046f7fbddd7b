"""Held-out rows of the glyphs world, and what its exact verifiers say of answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.worlds.glyphs import TASKS, Glyphs

HELDOUT_SEED = 20_241_015  # every run is judged on the same scenes, so that runs can be paired


def heldout_rows(scenes: int, questions: int) -> Iterator[dict[str, Any]]:
    """Caption rows for `scenes` held-out scenes and `questions` questions of each POPE kind."""
    world = Glyphs()
    for task in TASKS:
        count = scenes if task == "caption" else questions
        yield from world.rows("heldout", count, HELDOUT_SEED, task)


def verified(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """One record per row: id, kind, text and the verifier's parts; for questions the true answer."""
    world = Glyphs()
    records: list[dict[str, Any]] = []
    for row, text in zip(rows, texts, strict=True):
        record = {"id": row["id"], "kind": row["kind"], "text": text, **world.verify(row, text)}
        if row["kind"] != "caption":
            record |= {"answer": row["answer"], "cluster": row["scene"]["id"]}
        records.append(record)
    return records
