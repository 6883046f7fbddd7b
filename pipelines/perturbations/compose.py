"""One picture among others: sequences, collages and pictures in pictures, as MIA-DPO builds prompts.

MIA-DPO (code read) turns a question about one picture into one about that picture among others. Layout,
sizes and the wording of the question are inferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.perturbations.base import Picture, picture_of, scaled
from pipelines.types import Media, Op, Part, Prompt

Box = tuple[int, int, int, int]  # (x0, y0, x1, y1), pixels; x1 and y1 exclusive


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Several pictures put together, and where the one that the question is about has gone."""

    media: tuple[Media, ...]  # what the prompt shows, in order
    index: int  # 0-based: the target among the media of a sequence, or its cell of a collage in reading order
    box: Box  # the target in its picture


def sequence(target: Media, others: Sequence[Media], seed: int) -> Composed:
    """The target and the others as pictures of their own in random order."""
    index = int(np.random.default_rng(seed).integers(len(others) + 1))
    height, width = picture_of(target, "sequence").shape[:2]
    media = (*others[:index], target, *others[index:])
    return Composed(media=media, index=index, box=(0, 0, width, height))


def collage(target: Media, others: Sequence[Media], seed: int) -> Composed:
    """One picture: a grid, as square as can be, of cells of the target's size; the target is in a random one.

    The others are scaled to fit their cell, in the order given; what is left of a cell is black.
    """
    rng = np.random.default_rng(seed)
    pictures = [picture_of(media, "collage") for media in others]
    index = int(rng.integers(len(others) + 1))
    pictures.insert(index, picture_of(target, "collage"))
    height, width = pictures[index].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures)))
    canvas = np.zeros((-(-len(pictures) // columns) * height, columns * width, 3), dtype=np.uint8)
    for cell, picture in enumerate(pictures):
        _paste(canvas, picture, (cell % columns * width, cell // columns * height, width, height))
    x, y = index % columns * width, index // columns * height
    return _composed("collage", canvas, target, others, index, (x, y, x + width, y + height), seed)


def picture_in_picture(target: Media, background: Media, seed: int, share: float = 0.25) -> Composed:
    """The target in `share` of the background's area, at a random place; the target keeps its proportions.

    Raises ValueError for a share outside 0..1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"picture_in_picture(share=...): expected more than 0, at most 1, got {share}")
    canvas = picture_of(background, "picture_in_picture").copy()
    picture = picture_of(target, "picture_in_picture")
    height, width = map(int, canvas.shape[:2])
    rows, columns = map(int, picture.shape[:2])
    scale = min(math.sqrt(share * height * width / (rows * columns)), height / rows, width / columns)
    h, w = max(round(rows * scale), 1), max(round(columns * scale), 1)
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    canvas[y : y + h, x : x + w] = scaled(picture, w, h)
    box = (x, y, x + w, y + h)
    return _composed("picture_in_picture", canvas, target, [background], 0, box, seed)


def show(prompt: Prompt, composed: Composed, prefix: str = "", origin: str = "composed") -> Prompt:
    """The prompt with the composed media in place of its one picture.

    `prefix` goes before the text that follows; "{number}" in it is where the target is, counted from 1.
    Raises ValueError unless the prompt shows exactly one media.
    """
    if len(prompt.media) != 1:
        raise ValueError(f"prompt {prompt.id}: expected one picture to compose, got {len(prompt.media)}")
    shown = tuple(Part(kind=media.kind, digest=media.digest) for media in composed.media)
    said = Part(kind="text", text=prefix.format(number=composed.index + 1))
    messages = list(prompt.messages)
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            if part.digest:
                inserted = (*shown, said) if prefix else shown
                parts = (*message.parts[:j], *inserted, *message.parts[j + 1 :])
                messages[i] = replace(message, parts=parts)
    return replace(prompt, messages=tuple(messages), origin=origin)


def _composed(
    name: str, canvas: Picture, target: Media, others: Sequence[Media], index: int, box: Box, seed: int
) -> Composed:
    facts = {"others": [media.digest for media in others], "index": index, "box": list(box)}
    op = Op(name=name, params={"space": "pixels", **facts}, seed=seed)
    made = Media(kind="image", space="rgb8", payload=canvas, parent=target.digest, op=op)
    return Composed(media=(made,), index=index, box=box)


def _paste(canvas: Picture, picture: Picture, cell: tuple[int, int, int, int]) -> None:
    """Into the middle of a cell (x, y, width, height), as large as fits."""
    x, y, width, height = cell
    scale = min(width / picture.shape[1], height / picture.shape[0])
    w, h = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    left, top = x + (width - w) // 2, y + (height - h) // 2
    canvas[top : top + h, left : left + w] = scaled(picture, w, h)
