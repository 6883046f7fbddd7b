"""The caption grammar: write a caption from mentions, and read the mentions back out of any text.

    caption := mention (" and " mention)* " ."
    mention := "a" colour digit ("top" | "bottom") ("left" | "right")

Reading never fails: what does not fit the grammar is counted, not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.worlds.glyphs.scenes import Scene
from pipelines.worlds.glyphs.vocabulary import CELLS, COLOURS, DIGITS


class Mention(NamedTuple):
    """An object that a caption names: indices into DIGITS, COLOURS and CELLS."""

    digit: int
    colour: int
    cell: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a caption says. `malformed` counts clauses outside the grammar, and a missing final stop as
    one.
    """

    mentions: tuple[Mention, ...]
    malformed: int


def mentions_of(scene: Scene) -> tuple[Mention, ...]:
    """The objects of a scene, in reading order."""
    return tuple(Mention(glyph.digit, glyph.colour, glyph.cell) for glyph in scene.objects)


def write_caption(mentions: Iterable[Mention]) -> str:
    """The caption that names exactly these objects in this order: "a red seven top left and ... ." """
    clauses = (f"a {COLOURS[m.colour]} {DIGITS[m.digit]} {CELLS[m.cell]}" for m in mentions)
    return " and ".join(clauses) + " ."


def read_caption(text: str) -> Reading:
    """The mentions of a text in order, repeated ones included. Case and spacing do not matter."""
    words = text.lower().replace(".", " . ").split()
    stopped = bool(words) and words[-1] == "."
    clauses = " ".join(words[:-1] if stopped else words).split(" and ")
    mentions = [_read_clause(clause) for clause in clauses]
    found = tuple(mention for mention in mentions if mention is not None)
    return Reading(mentions=found, malformed=len(mentions) - len(found) + (not stopped))


def _read_clause(clause: str) -> Mention | None:
    words = clause.split()
    if len(words) != 5 or words[0] != "a":
        return None
    colour, digit, cell = words[1], words[2], f"{words[3]} {words[4]}"
    if colour not in COLOURS or digit not in DIGITS or cell not in CELLS:
        return None
    return Mention(DIGITS.index(digit), COLOURS.index(colour), CELLS.index(cell))
