"""Prompts of the embedded glyphs world, made from their position alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.data.base import Inventory, Row
from pipelines.data.conversations import read_prompt
from pipelines.data.files import as_prompt
from pipelines.types import Media, Prompt
from pipelines.worlds.glyphs import QUESTION_KINDS, Glyphs
from pipelines.worlds.glyphs.edits import inject
from pipelines.worlds.glyphs.scenes import Scene
from pipelines.worlds.glyphs.vocabulary import CELLS, COLOURS, DIGITS

WORLD = Glyphs()


@dataclass(frozen=True, kw_only=True)
class GlyphsSource:
    """`count` rows about the training scenes of a seed, one scene each.

    A share `questions` of the rows asks a yes/no question, evenly spread, the three POPE kinds in turn and
    each as often with the answer yes as with no; the others ask for a caption.
    """

    count: int
    seed: int
    questions: float = 0.0
    kind: Literal["glyphs"] = "glyphs"
    path: Path | None = None

    def inventory(self) -> Inventory:
        return Inventory(usable=range(self.count))

    def rows(self) -> Iterator[tuple[int, Row]]:
        return ((position, self.row(None, position)) for position in range(self.count))

    def row(self, raw: Any, position: int) -> Row:
        asked = int(position * self.questions)  # questions among the rows before this one
        if int((position + 1) * self.questions) == asked:
            return self._row("caption", position)
        kind, says_no = QUESTION_KINDS[asked % 3], (asked // 3) % 2
        return self._row(kind, 2 * position + says_no)

    def _row(self, task: str, number: int) -> Row:
        return next(WORLD.rows("train", 1, self.seed, task, start=number))

    def prompt(self, row: Row) -> tuple[Prompt, dict[str, Media]]:
        """Any row of the world, held-out ones included.

        Gold is the row with its `named_boxes` as `boxes` and a recorded pair: `chosen` is the true answer,
        `rejected` the same with one false mention put in (POVID's kind of pair).
        """
        picture = Media(kind="image", space="rgb8", payload=WORLD.image(row))
        turns = read_prompt(row["prompt"], 1, (), row["id"])
        gold = {key: value for key, value in row.items() if key not in ("id", "prompt")}
        seed = int.from_bytes(hashlib.sha256(str(row["id"]).encode()).digest()[:4], "big")
        rejected, _ = inject(str(row["answer"]), row, seed)
        pair = {"chosen": row["answer"], "rejected": rejected}
        return as_prompt(row["id"], turns, (picture,), gold | pair | {"boxes": named_boxes(row)})


def named_boxes(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One {"box": [x0, y0, x1, y1], "words": [...]} per object: what may be said of it, and where it is."""
    scene = Scene.from_json(row["scene"])
    return [
        {
            "box": list(glyph.box),
            "words": [COLOURS[glyph.colour], DIGITS[glyph.digit], *CELLS[glyph.cell].split()],
        }
        for glyph in scene.objects
    ]
