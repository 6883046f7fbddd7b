"""The prompt stream: rows through Ray Data, in order, put into the object store for scorers to open.

The cursor counts prompts from the start of the run, over epochs. With the same data and order, the same
cursor is the same prompt, so a resumed run only has to `seek`. An order is a permutation of one block of the
stream, so no prompt of a pass ever comes twice.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from pipelines.data.base import Source
from pipelines.loop import PROMPT_LOST, Parcel, PromptItem, RoleFailed

CHUNK = 8 * 2**20  # bytes of a JSONL file that one read task takes


class PromptStream:
    """One per run; calls queue up behind each other.

    Args:
        usable: positions of the rows that the inventory found usable, ascending.
        epochs: how often the data is gone through; None: as often as the run asks.
        put: what makes a parcel's content out of a row (`ray.put`: this actor owns the row).
    """

    def __init__(
        self,
        source: Source,
        usable: Sequence[int],
        epochs: int | None = None,
        put: Callable[[Any], Any] = ray.put,
    ) -> None:
        if not usable:
            raise ValueError("a prompt stream needs at least one usable row, got none")
        self._source, self._usable, self._epochs, self._put = source, list(usable), epochs, put
        self._order: list[int] = []  # of the prompts from `_start` on
        self._start = self._cursor = 0
        self._shelf: list[tuple[int, Any]] | None = None  # rows in file order, kept only for an order
        self._rows: Iterator[tuple[int, Any]] | None = None
        self._lock = asyncio.Lock()

    async def next(self, limit: int) -> list[PromptItem]:
        """Up to `limit` prompts (cursor, epoch, prompt id, parcel); none after the last epoch."""
        async with self._lock:
            return await asyncio.to_thread(lambda: list(self._take(limit)))

    async def seek(self, cursor: int) -> None:
        """Go on at `cursor`."""
        if cursor < 0:
            raise ValueError(f"a cursor is not negative, got {cursor}")
        async with self._lock:
            self._cursor, self._rows = cursor, None

    async def reorder(self, order: Sequence[int], start: int = 0) -> None:
        """Go on at cursor `start`, with the next len(order) prompts in this order (a permutation)."""
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"an order is a permutation of 0..{len(order) - 1}")
        async with self._lock:
            self._order, self._start, self._cursor, self._rows = list(order), start, start, None

    def _take(self, limit: int) -> Iterator[PromptItem]:
        for _ in range(limit):
            offset = self._cursor - self._start
            ordered = 0 <= offset < len(self._order)
            place = self._start + self._order[offset] if ordered else self._cursor
            # An order may span several passes over the data, and a prompt is identified by its pass.
            epoch, rank = divmod(place, len(self._usable))
            if self._epochs is not None and self._cursor >= self._epochs * len(self._usable):
                return
            position, raw = self._shelved(rank) if ordered else self._row(rank)
            yield self._cursor, epoch, str(position), [self._put((position, raw))]
            self._cursor += 1

    def _row(self, rank: int) -> tuple[int, Any]:
        """The usable row of this rank: the next one of the stream, which starts anew with each pass."""
        if self._rows is None or rank == 0:
            self._rows = self._stream(rank)
        return next(self._rows)

    def _shelved(self, rank: int) -> tuple[int, Any]:
        if self._shelf is None:
            self._shelf = [(p, self._put(raw)) for p, raw in self._stream(0)]
        position, kept = self._shelf[rank]
        return position, ray.get(kept) if isinstance(kept, ray.ObjectRef) else kept

    def _stream(self, rank: int) -> Iterator[tuple[int, Any]]:
        """Usable rows of one pass with their positions, from the `rank`-th on."""
        wanted = self._usable[rank:]
        index = 0
        for position, raw in enumerate(raw_rows(self._source, self._usable[-1] + 1)):
            if position == wanted[index]:
                yield position, raw
                index += 1
                if index == len(wanted):
                    return
        raise ValueError(
            f"the data became shorter: row {wanted[index] + 1} was there when the run was validated"
        )


async def opened(parcel: Parcel) -> tuple[int, Any]:
    """The position and the raw row. Raises RoleFailed where they went with the stream that owned them."""
    [item] = parcel
    try:
        return await item if inspect.isawaitable(item) else item
    except ObjectLostError as error:  # a dead owner included
        raise RoleFailed(PROMPT_LOST, "data", f"{type(error).__name__}: the prompt stream is gone") from error


def raw_rows(source: Source, count: int) -> Iterator[Any]:
    """At least the first `count` rows of a source through Ray Data, in order, as `Source.row` takes them."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if source.kind == "glyphs" or source.path is None:
        return (None for _ in ray.data.range(count).iter_rows())
    if source.kind == "parquet":
        return iter(ray.data.read_parquet(str(source.path)).iter_rows())
    # Not `read_text`: it also breaks lines at U+2028 and the like, which JSON allows inside strings.
    chunks = ray.data.from_items(list(line_chunks(source.path, CHUNK)))
    return (row["line"] for row in chunks.flat_map(read_chunk).iter_rows())


def line_chunks(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """Byte ranges of about `size` that end where a line ends."""
    start, end_of_file = 0, path.stat().st_size
    with path.open("rb") as file:
        while start < end_of_file:
            file.seek(min(start + size, end_of_file) - 1)
            file.readline()
            yield {"path": str(path), "start": start, "stop": file.tell()}
            start = file.tell()


def read_chunk(chunk: dict[str, Any]) -> list[dict[str, bytes]]:
    """The lines of a byte range."""
    with Path(chunk["path"]).open("rb") as file:
        file.seek(chunk["start"])
        data = file.read(chunk["stop"] - chunk["start"])
    return [{"line": line} for line in data.removesuffix(b"\n").split(b"\n")]
