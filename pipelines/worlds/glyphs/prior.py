"""The language prior of the glyphs world: what tends to be said next, whatever the picture shows.

Models trained on captions pick up that some objects are named together, and then name the second one unseen.
Here that habit is planted on purpose and is a function of the words alone, so that it can be unlearned
without seeing any better.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.worlds.glyphs.captions import Mention
from pipelines.worlds.glyphs.scenes import Kind
from pipelines.worlds.glyphs.vocabulary import CELLS, DIGITS


def successor(kind: Kind) -> Kind:
    """The kind that the prior ties to a kind: the next digit (nine is followed by zero) in the same
    colour.
    """
    digit, colour = kind
    return (digit + 1) % len(DIGITS), colour


def invented(mentions: Sequence[Mention]) -> Mention | None:
    """The object that the prior adds after these mentions, or None when there is nothing to go by.

    The successor of the last mention, in the first cell (reading order) that no mention occupies. Since it is
    in a cell of its own, it is never an object that was mentioned already.
    """
    free = [cell for cell in range(len(CELLS)) if cell not in {mention.cell for mention in mentions}]
    if not mentions or not free:
        return None
    last = mentions[-1]
    return Mention(*successor((last.digit, last.colour)), free[0])
