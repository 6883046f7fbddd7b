"""Worlds: generators of scenes whose facts are known exactly, standing in for a dataset.

A world hands out *rows*, a few hundred bytes of JSON-able facts each, so that a distributed run ships facts
and every worker renders for itself. It also knows the answer: its verifiers are exact, which no human-made
dataset offers. Held-out rows share neither raw material nor held-out combinations with training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Split = Literal["train", "heldout"]


class World(Protocol):
    """A data source with exact facts.

    A row holds `id`; `prompt` (conversational: one user message whose content is an image part `{"type":
    "image"}` and a text part); `scene` (the facts); `answer` (a right answer as text); `kind` (the task).
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """The kinds of rows there are."""
        ...

    def rows(self, split: Split, count: int, seed: int, task: str, start: int = 0) -> Iterator[Row]:
        """Rows number `start` to `start + count - 1` of a split; a pure function of the arguments.

        Raises ValueError for a split or task that does not exist.
        """
        ...

    def image(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """The row's picture, uint8 [height, width, 3] RGB."""
        ...

    def boxes(self, row: Mapping[str, Any]) -> tuple[tuple[int, int, int, int], ...]:
        """(x0, y0, x1, y1) of each object in pixels, x1 and y1 exclusive, in the order of the facts."""
        ...

    def verify(self, row: Mapping[str, Any], text: str) -> dict[str, float]:
        """Components of how right a response is; `value` is their sum as a reward."""
        ...
