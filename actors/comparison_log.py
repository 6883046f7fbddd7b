"""What was really trained, written by the learner's ranks: a record that nobody else can have made.

`comparisons/step-00012-rank-0.parquet` has one row per comparison; `media/<digest>.png` holds the pictures
of a few of them, for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines import durable
from pipelines.types import Behaviour, Candidate, Comparison, Group, MediaTable, Preference, Prompt, Score

SHOWN_EVERY = 5  # steps
SHOWN = 4  # comparisons of such a step


def write_comparisons(
    run_dir: Path,
    groups: Sequence[Group],
    margins: Sequence[Mapping[str, float]],
    *,
    attempt: int,
    step: int,
    rank: int,
) -> Path:
    """One row per comparison of this rank; `margins` are in the order of the groups' comparisons."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs = [(group, comparison) for group in groups for comparison in group.comparisons]
    rows = [
        {"attempt": attempt, "step": step, "rank": rank, **_row(group, comparison, found)}
        for (group, comparison), found in zip(pairs, margins, strict=True)
    ]
    path = run_dir / "comparisons" / f"step-{step:05d}-rank-{rank}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.swapped(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), partial)
    return path


def write_media(run_dir: Path, groups: Sequence[Group], step: int) -> None:
    """Pictures of the first comparisons of step 1 and of every fifth step, for the report."""
    if step != 1 and step % SHOWN_EVERY:
        return
    pairs = [(group, comparison) for group in groups for comparison in group.comparisons][:SHOWN]
    folder = run_dir / "media"
    folder.mkdir(parents=True, exist_ok=True)
    for group, comparison in pairs:
        for digest in {digest for prompt in comparison.prompts for digest in prompt.media}:
            path = folder / f"{digest}.png"
            if not path.exists():
                Image.fromarray(group.media[digest].payload).save(path)


def _schema() -> Any:
    import pyarrow as pa

    whole = ("attempt", "step", "rank", "stage", "use", "version_oldest", "version_newest")
    real = ("score_chosen", "score_rejected", "margin_text", "margin_media")
    words = ("group", "comparison", "edge", "edges", "cells", "prompt_id", "prompt_digest", "prompt_text")
    words += ("sampled_chosen", "sampled_rejected", "media_digest", "damaged_digest", "damage")
    words += ("chosen", "rejected", "parts_chosen", "parts_rejected", "margins")
    words += ("version_digest", "version_spans", "missing_chosen", "missing_rejected", "origin")
    words += ("feedback_versions",)
    return pa.schema(
        [(name, pa.int64()) for name in whole]
        + [(name, pa.string()) for name in words]
        + [(name, pa.float64()) for name in real]
    )


def _row(group: Group, comparison: Comparison, margins: Mapping[str, float]) -> dict[str, Any]:
    """`chosen` and `rejected` are the sides of the edge that the row shows; without any edge `chosen` is the
    first cell's answer. `rejected` is empty where both sides have one answer."""
    edge = _shown(comparison)
    winner = comparison.candidates[edge.winner if edge else 0]
    loser = comparison.candidates[edge.loser] if edge else None
    other = loser if loser is not None and loser.response != winner.response else None
    prompt = comparison.prompts[winner.prompt]
    clean, damaged = _swapped(comparison, prompt)
    behaviours = [c.behaviour for c in comparison.candidates if c.behaviour is not None]
    return {
        "stage": comparison.stage,
        "use": group.use,
        "group": group.id,
        "comparison": comparison.id,
        "edge": edge.name if edge else None,
        "edges": json.dumps([e.name for e in comparison.preferences]),
        "cells": json.dumps([c.role for c in comparison.candidates]),
        "version_oldest": min((b.oldest for b in behaviours), default=None),
        "version_newest": max((b.newest for b in behaviours), default=None),
        "version_digest": _digest(behaviours),
        "version_spans": _spans(comparison),
        "origin": _origin(prompt, winner),
        "feedback_versions": None
        if winner.behaviour
        else ",".join(prompt.gold.get("versions") or ()) or None,
        "prompt_id": prompt.id,
        "prompt_digest": prompt.digest,
        "prompt_text": _text(prompt),
        "sampled_chosen": winner.sampled_under,
        "sampled_rejected": loser.sampled_under if loser else None,
        "media_digest": clean,
        "damaged_digest": damaged,
        "damage": _damage(group.media, damaged),
        "chosen": comparison.responses[winner.response].text,
        "rejected": comparison.responses[other.response].text if other else None,
        "score_chosen": _value(winner),
        "score_rejected": _value(loser) if loser else None,
        "missing_chosen": winner.score.missing if winner.score else None,
        "missing_rejected": loser.score.missing if loser and loser.score else None,
        "parts_chosen": _parts(winner.score),
        "parts_rejected": _parts(loser.score) if loser else None,
        "margin_text": margins.get("text"),
        "margin_media": margins.get("media"),
        "margins": json.dumps({name: _finite(value) for name, value in margins.items()}),
    }


def _origin(prompt: Prompt, winner: Candidate) -> str:
    """Where `chosen` comes from: "sampled" by this run, "recorded" in the data, or a server's feedback, as
    in "feedback:choice" (`feedback_versions` are then those that the server had)."""
    if winner.behaviour:
        return "sampled"
    told = prompt.gold.get("feedback")
    return f"feedback:{told}" if told else "recorded"


def _digest(behaviours: Sequence[Behaviour]) -> str | None:
    """Digest of the newest version; several only where generators disagree about what that version is."""
    newest = max((b.newest for b in behaviours), default=None)
    found = sorted({b.digest for b in behaviours if b.newest == newest and b.digest})
    return ",".join(found) or None


def _spans(comparison: Comparison) -> str | None:
    """(version, tokens) of each cell, where some answer was sampled from several versions."""
    spans = [c.behaviour.versions if c.behaviour is not None else () for c in comparison.candidates]
    return json.dumps(spans) if any(spans) else None


def _shown(comparison: Comparison) -> Preference | None:
    """The edge of a row: "text" where there is one, else one with two answers, else the first."""
    edges = comparison.preferences
    named = [edge for edge in edges if edge.name == "text"]
    cells = comparison.candidates
    told = [edge for edge in edges if cells[edge.winner].response != cells[edge.loser].response]
    return next(iter([*named, *told, *edges]), None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _swapped(comparison: Comparison, prompt: Prompt) -> tuple[str | None, str | None]:
    """(clean, damaged) digest of the first image that a damaged prompt of this comparison exchanges."""
    for other in comparison.prompts:
        for clean, damaged in zip(prompt.media, other.media, strict=False):
            if clean != damaged:
                return clean, damaged
    return (prompt.media[0] if prompt.media else None), None


def _damage(media: MediaTable, digest: str | None) -> str | None:
    item = media.get(digest) if digest else None
    return json.dumps(item.op.to_json()) if item is not None and item.op is not None else None


def _text(prompt: Prompt) -> str:
    return "\n".join(part.text for message in prompt.messages for part in message.parts if part.text)


def _value(candidate: Candidate) -> float | None:
    return candidate.score.value if candidate.score else None


def _parts(score: Score | None) -> str | None:
    return json.dumps(dict(score.parts)) if score else None
