"""Scenes of the glyphs world: what is there, exactly, and how it looks.

A scene is a list of facts: one to four real handwritten digits (the 8x8 scans of scikit-learn's
`load_digits`), each in a colour and in a cell of a 2x2 grid. Pictures are made from the facts, and so can be
other views of the same scene. Everything follows from (split, seed, index); nothing is stored on disk.

Two things are kept from training, so that held-out numbers mean something: every sixth scan of each digit,
and the (digit, colour, cell) combinations for which `is_held_out_combination` is true. Held-out scenes use
only held-out scans and any combination.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.worlds.glyphs.vocabulary import CELLS, COLOURS, DIGITS

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
Box = tuple[int, int, int, int]
Kind = tuple[int, int]  # (digit, colour)

SIZE = 64
CELL = SIZE // 2
_COUNTS = (1, 2, 3, 4)
#: Few scenes are full: a full scene has no free cell in which an object could be invented.
_COUNT_PROBABILITY = (0.40, 0.35, 0.18, 0.07)
KINDS: tuple[Kind, ...] = tuple(
    (digit, colour) for digit in range(len(DIGITS)) for colour in range(len(COLOURS))
)
#: Kinds that occur twice as often as the others; "popular" questions ask for them.
POPULAR: tuple[Kind, ...] = KINDS[::5]
_KIND_WEIGHT = np.array([2.0 if kind in POPULAR else 1.0 for kind in KINDS])
_KIND_PROBABILITY = _KIND_WEIGHT / _KIND_WEIGHT.sum()
_GLYPH_SIZES = (22, 28)  # pixels, smallest and largest
_MAX_TURN = 10.0  # degrees to either side
_FAINTEST = 32  # darker pixels become background, so that boxes are tight


@dataclass(frozen=True, kw_only=True)
class Glyph:
    """One object of a scene."""

    digit: int  # 0 to 9
    colour: int  # index into COLOURS
    cell: int  # index into CELLS, in reading order
    scan: int  # index into scikit-learn's digits
    size: int  # side of the drawn square, pixels
    turn: float  # rotation, degrees
    corner: tuple[int, int]  # (x, y) of the drawn square in the picture, pixels
    box: Box  # (x0, y0, x1, y1) tight around the lit pixels; x1 and y1 are exclusive

    @property
    def kind(self) -> Kind:
        return self.digit, self.colour


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is there. `objects` are in reading order of their cells."""

    id: str
    objects: tuple[Glyph, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able facts, a few hundred bytes."""
        return {"id": self.id, "objects": [_glyph_to_json(glyph) for glyph in self.objects]}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Scene:
        """Inverse of `to_json`; also takes the number and list types that a columnar store hands back."""
        return Scene(
            id=str(facts["id"]), objects=tuple(_glyph_from_json(entry) for entry in facts["objects"])
        )


def _glyph_to_json(glyph: Glyph) -> dict[str, Any]:
    entry: dict[str, Any] = dict(vars(glyph))
    return entry | {"corner": list(glyph.corner), "box": list(glyph.box)}


def _glyph_from_json(entry: Mapping[str, Any]) -> Glyph:
    x, y = (int(value) for value in entry["corner"])
    x0, y0, x1, y1 = (int(value) for value in entry["box"])
    return Glyph(
        digit=int(entry["digit"]),
        colour=int(entry["colour"]),
        cell=int(entry["cell"]),
        scan=int(entry["scan"]),
        size=int(entry["size"]),
        turn=float(entry["turn"]),
        corner=(x, y),
        box=(x0, y0, x1, y1),
    )


def is_held_out_combination(digit: int, colour: int, cell: int) -> bool:
    """True for the 11 of 120 combinations that never appear in a training picture."""
    return (7 * digit + 3 * colour + 5 * cell) % 11 == 0


@cache
def _scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scans as [n, 8, 8] in 0..1, and their digits [n]."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]

    data = cast(Any, load_digits())
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


@cache
def scans_of(split: Split, digit: int) -> NDArray[np.int64]:
    """Indices of the scans of one digit in one split; the splits share none."""
    every = np.flatnonzero(_scans()[1] == digit)
    held_out = np.arange(len(every)) % 6 == 5
    return every[held_out] if split == "heldout" else every[~held_out]


def _draw(scan: int, size: int, turn: float) -> NDArray[np.uint8]:
    """A scan enlarged (bilinear) and turned, as brightness [size, size]; the background is exactly 0."""
    source = np.pad(_scans()[0][scan], 1)
    radians = np.deg2rad(turn)
    axis = ((np.arange(size) + 0.5) / size - 0.5) * 8.0
    x, y = axis[None, :], axis[:, None]
    column = np.clip(np.cos(radians) * x + np.sin(radians) * y + 4.5, 0.0, 8.999)
    row = np.clip(np.cos(radians) * y - np.sin(radians) * x + 4.5, 0.0, 8.999)
    left, above = column.astype(np.int64), row.astype(np.int64)
    fx, fy = column - left, row - above
    top = source[above, left] * (1 - fx) + source[above, left + 1] * fx
    bottom = source[above + 1, left] * (1 - fx) + source[above + 1, left + 1] * fx
    brightness = np.rint((top * (1 - fy) + bottom * fy) * 255.0).astype(np.uint8)
    brightness[brightness < _FAINTEST] = 0
    return brightness


def place_glyph(rng: np.random.Generator, split: Split, kind: Kind, cell: int) -> Glyph:
    """Choose scan, size, turn and position of one object."""
    scan = int(rng.choice(scans_of(split, kind[0])))
    size = int(rng.integers(_GLYPH_SIZES[0], _GLYPH_SIZES[1] + 1))
    turn = float(np.round(rng.uniform(-_MAX_TURN, _MAX_TURN), 2))
    x = int(rng.integers(0, CELL - size + 1)) + CELL * (cell % 2)
    y = int(rng.integers(0, CELL - size + 1)) + CELL * (cell // 2)
    lit = _draw(scan, size, turn) > 0
    columns, rows = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
    box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
    return Glyph(
        digit=kind[0], colour=kind[1], cell=cell, scan=scan, size=size, turn=turn, corner=(x, y), box=box
    )


def make_scene(split: Split, index: int, seed: int) -> Scene:
    """The scene number `index` of a split. The same arguments always give the same scene."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    count = int(rng.choice(_COUNTS, p=_COUNT_PROBABILITY))
    cells = sorted(int(cell) for cell in rng.choice(len(CELLS), size=count, replace=False))
    objects: list[Glyph] = []
    for cell in cells:
        kind = KINDS[int(rng.choice(len(KINDS), p=_KIND_PROBABILITY))]
        while split == "train" and is_held_out_combination(*kind, cell):
            kind = KINDS[int(rng.choice(len(KINDS), p=_KIND_PROBABILITY))]
        objects.append(place_glyph(rng, split, kind, cell))
    return Scene(id=f"glyphs-{split}-{seed}-{index}", objects=tuple(objects))


def scenes(split: Split, start: int, count: int, seed: int) -> Iterator[Scene]:
    """Scenes number `start` to `start + count - 1` of a split.

    Raises ValueError for a split that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"glyphs: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return (make_scene(split, index, seed) for index in range(start, start + count))


def render_image(scene: Scene) -> NDArray[np.uint8]:
    """The scene as a picture, uint8 [64, 64, 3] RGB: each digit in its colour's channel on black."""
    picture = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    for glyph in scene.objects:
        x, y = glyph.corner
        picture[y : y + glyph.size, x : x + glyph.size, glyph.colour] = _draw(
            glyph.scan, glyph.size, glyph.turn
        )
    return picture
