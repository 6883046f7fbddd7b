"""Picks trained comparisons for people to look at: pictures, answers, score components, margins, versions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (pyarrow has no types)

from __future__ import annotations

import base64
import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from pipelines.lineage import Lineage

SHOWN: Final = 12
LARGEST: Final = 384  # pixels of a picture's longer side on the page
_WORDS: Final = 2000  # of an answer; longer ones are cut for the page
_SHOWN: Final = (
    "version_oldest",
    "version_newest",
    "prompt_id",
    "prompt_text",
    "margin_text",
    "margin_media",
)
_LIGHT: Final = ("attempt", "step", "group", "comparison", "media_digest", "damaged_digest")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of an answer; mark: "wrong" (says the verifier), "differs" (from the other answer) or ""."""

    text: str
    mark: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    pieces: Sequence[Piece]
    score: float | None
    parts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One comparison as the page shows it. Pictures are data URIs; None: none there, or not kept."""

    row: Mapping[str, Any]
    picture: str | None
    damaged: str | None
    damage: str
    chosen: Answer
    rejected: Answer | None  # None: both sides have the same answer


def cards(run_dir: Path, lineage: Lineage, count: int = SHOWN) -> tuple[list[Card], list[str]]:
    """Up to `count` comparisons spread evenly over training, those with kept pictures first; and notes."""
    found, notes = _index(run_dir, lineage)
    kept = [entry for entry in found if _kept(run_dir, entry[0])]
    eligible = kept or found
    eligible.sort(key=lambda entry: (entry[0]["step"], str(entry[0]["comparison"])))
    last = len(eligible) - 1
    picked = sorted({round(i * last / max(1, count - 1)) for i in range(count)}) if eligible else []
    return [_card(run_dir, _row(*eligible[i][1:])) for i in picked], notes


def _index(run_dir: Path, lineage: Lineage) -> tuple[list[tuple[dict[str, Any], Path, int]], list[str]]:
    """(light columns, file, position) of every row of the final lineage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[tuple[dict[str, Any], Path, int]] = []
    notes: list[str] = []
    for path in sorted((run_dir / "comparisons").glob("*.parquet")):
        try:
            rows = pq.read_table(path, columns=[*_LIGHT]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            notes.append(f"comparisons/{path.name} cannot be read ({type(error).__name__})")
            continue
        found += [
            (row, path, position)
            for position, row in enumerate(rows)
            if lineage.keeps(row["attempt"], row["step"])
        ]
    return found, notes


def _row(path: Path, position: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    row = cast("dict[str, Any]", pq.read_table(path).slice(position, 1).to_pylist()[0])
    return {**dict.fromkeys(_SHOWN), **row}


def _kept(run_dir: Path, row: Mapping[str, Any]) -> bool:
    wanted = [digest for digest in (row["media_digest"], row["damaged_digest"]) if digest]
    return all((path := _picture_path(run_dir, digest)) is not None and path.exists() for digest in wanted)


def _card(run_dir: Path, row: Mapping[str, Any]) -> Card:
    parts = {side: _json(row.get(f"parts_{side}")) for side in ("chosen", "rejected")}
    chosen, rejected = str(row.get("chosen") or ""), row.get("rejected")
    other = chosen if rejected is None else str(rejected)
    loser = _answer(other, chosen, row.get("score_rejected"), parts["rejected"])
    return Card(
        row=row,
        picture=_picture(run_dir, row.get("media_digest")),
        damaged=_picture(run_dir, row.get("damaged_digest")),
        damage=_damage(row.get("damage")),
        chosen=_answer(chosen, other, row.get("score_chosen"), parts["chosen"]),
        rejected=None if rejected is None else loser,
    )


def _answer(text: str, other: str, score: float | None, parts: Mapping[str, Any]) -> Answer:
    wrong = parts.get("wrong_mentions")
    listed = cast("list[object]", wrong) if isinstance(wrong, list) else []
    mentions = [str(mention) for mention in listed if mention]
    pieces = wrong_pieces(text, mentions) if mentions else differing_pieces(text, other)
    numbers = {name: value for name, value in parts.items() if name != "wrong_mentions"}
    return Answer(pieces=pieces, score=score, parts=numbers)


def wrong_pieces(text: str, mentions: Sequence[str]) -> list[Piece]:
    """The text cut at the mentions that the verifier found to be wrong."""
    pattern = "|".join(re.escape(mention) for mention in sorted(mentions, key=len, reverse=True))
    wanted = set(mentions)
    cut = [piece for piece in re.split(f"({pattern})", text) if piece]
    return [Piece(text=piece, mark="wrong" if piece in wanted else "") for piece in cut]


def differing_pieces(text: str, other: str) -> list[Piece]:
    """The text cut where its words differ from the other answer's."""
    words, others = _words(text), _words(other)
    pieces: list[Piece] = []
    for tag, start, end, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if start < end:
            pieces.append(Piece(text="".join(words[start:end]), mark="" if tag == "equal" else "differs"))
    return pieces


def _words(text: str) -> list[str]:
    words = re.findall(r"\s+|\w+|[^\w\s]+", text)
    return words if len(words) <= _WORDS else [*words[:_WORDS], " [cut for the page]"]


def _damage(op: Any) -> str:
    """ "diffuse (steps 500, seed 3)" from the JSON of an operation."""
    fields = _json(op)
    if "name" not in fields:
        return ""
    params = {**cast("dict[str, Any]", fields.get("params") or {}), "seed": fields.get("seed")}
    inside = ", ".join(f"{key} {value}" for key, value in params.items() if value is not None)
    return f"{fields['name']} ({inside})"


def _json(text: Any) -> dict[str, Any]:
    try:
        value: Any = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {"unreadable": text}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _picture_path(run_dir: Path, digest: object) -> Path | None:
    """None unless it is a digest: what stands in a file must not lead out of the run's folder."""
    plain = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{8,128}", digest)
    return run_dir / "media" / f"{digest}.png" if plain else None


def _picture(run_dir: Path, digest: object) -> str | None:
    """The kept picture as a PNG data URI, made smaller where it is large."""
    from PIL import Image

    path = _picture_path(run_dir, digest)
    if path is None or not path.exists():
        return None
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
