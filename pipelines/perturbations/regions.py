"""From an answer to the regions it speaks of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.perturbations.base import Mask, Regions
from pipelines.perturbations.keywords import words_of
from pipelines.types import Media

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1), pixels; x1 and y1 exclusive


class Locator(Protocol):
    """Finds where keywords are in a picture; None when it finds none of them."""

    def __call__(
        self, media: Media, keywords: Sequence[str], answer: str, gold: Mapping[str, Any]
    ) -> Regions | None: ...


@dataclass(frozen=True)
class KeyRegions:
    """The union of the regions of an answer's keywords.

    MFPO, arXiv 2410.15334, steps 1 and 2 (third-party note): keywords of the chosen answer, then a mask for
    each. None, and so the whole picture, when there is no keyword or none can be located.
    """

    keywords: Callable[[str], Sequence[str]]
    locate: Locator

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None:
        keywords = self.keywords(answer)
        found = self.locate(media, keywords, answer, gold) if keywords else None
        if found is None:
            return None
        return Regions(mask=found.mask, facts={"keywords": list(keywords), **found.facts})


@dataclass(frozen=True)
class KnownBoxes:
    """Boxes that the data row knows: `gold["boxes"]`, a list of {"box": [x0, y0, x1, y1], "words": [...]}.

    A keyword selects, among the boxes that carry it, those which share the most words with the answer: with a
    red seven and a red three in the picture, "red" in an answer about the seven selects the seven. The boxes
    are taken to be those of the one image of the prompt.

    Raises ValueError when the row has no such list, or a box does not lie in the picture.
    """

    key: str = "boxes"

    def __call__(
        self, media: Media, keywords: Sequence[str], answer: str, gold: Mapping[str, Any]
    ) -> Regions | None:
        entries = known_boxes(media, gold, self.key)
        said = frozenset(words_of(answer))
        chosen: set[int] = set()
        for keyword in keywords:
            shared = {i: len(words & said) for i, (_, words) in enumerate(entries) if keyword in words}
            chosen |= {i for i, count in shared.items() if count == max(shared.values())}
        if not chosen:
            return None
        boxes = [entries[i][0] for i in sorted(chosen)]
        mask = box_mask(boxes, media)
        return Regions(mask=mask, facts={"boxes": [list(box) for box in boxes]})


@dataclass(frozen=True)
class OneObject:
    """One known object of those that the answer speaks of, for damage that takes one object at a time.

    AdaViP and LPOI (third-party notes) remove or mask one object per candidate. Objects are counted in the
    order in which the answer comes to them; `which` counts round, so that 0, 1, 2, ... give distinct
    candidates as long as there are. None draws one by the seed. The objects are those of `gold[key]`, as in
    `KnownBoxes`.

    Raises ValueError as `KnownBoxes` does.
    """

    which: int | None = 0
    key: str = "boxes"

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None:
        entries = known_boxes(media, gold, self.key)
        spoken = spoken_of([words for _, words in entries], words_of(answer))
        if not spoken:
            return None
        which = (
            self.which if self.which is not None else int(np.random.default_rng([seed, 1]).integers(2**31))
        )
        chosen = spoken[which % len(spoken)]
        box = entries[chosen][0]
        return Regions(mask=box_mask([box], media), facts={"object": chosen, "boxes": [list(box)]})


def spoken_of(objects: Sequence[frozenset[str]], said: Sequence[str]) -> list[int]:
    """Which objects, given by their words, a text speaks of; in the order of the text.

    An object is looked for where the most of its words stand together, in a stretch as long as it has words.
    A word of the text speaks of one object alone, the one with the most words around it, so that "top" of an
    object at the top left is no mention of another one at the top right.
    """
    finds: list[tuple[int, int, int, frozenset[int]]] = []  # (-words found, place, object, their places)
    for number, words in enumerate(objects):
        for place, word in enumerate(said):
            if word in words:
                stretch = range(place, min(place + len(words), len(said)))
                where = frozenset(i for i in stretch if said[i] in words)
                finds.append((-len({said[i] for i in where}), place, number, where))
    taken: set[int] = set()
    starts: dict[int, int] = {}
    for _, place, number, where in sorted(finds, key=lambda find: find[:3]):
        if number not in starts and not where & taken:
            starts[number] = place
            taken |= where
    return sorted(starts, key=lambda number: starts[number])


def known_boxes(media: Media, gold: Mapping[str, Any], key: str) -> list[tuple[Box, frozenset[str]]]:
    """The boxes of a row's objects and what each may be called; ValueError for what is no such list."""
    if gold.get(key) is None:
        raise ValueError(
            f"regions from known boxes: the row has no {key!r}, only {sorted(gold)}; expected a list of "
            "{'box': [x0, y0, x1, y1], 'words': [...]}, or choose regions that a model finds"
        )
    return [_entry(f"{key}[{i}]", entry, media) for i, entry in enumerate(gold[key])]


def _entry(where: str, entry: Any, media: Media) -> tuple[Box, frozenset[str]]:
    height, width = media.payload.shape[:2]
    try:
        x0, y0, x1, y1 = (float(value) for value in entry["box"])
        words = frozenset(word for text in entry["words"] for word in words_of(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected {{'box': [x0, y0, x1, y1], 'words': [...]}}, got {entry!r}"
        ) from error
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"{where}: expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, got "
            f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}]; is the box in pixels of this picture?"
        )
    return (x0, y0, x1, y1), words


def box_mask(boxes: Sequence[Box], media: Media) -> Mask:
    """True in every pixel that a box touches, [height, width]; parts outside the picture are ignored."""
    height, width = media.payload.shape[:2]
    mask = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(math.floor(y0), 0), max(math.ceil(y1), 0))
        mask[rows, max(math.floor(x0), 0) : max(math.ceil(x1), 0)] = True
    return mask
