"""Parts of a run in one process: what a run with Ray gives to threads and to Ray Data is done in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from actors.prompts import PromptStream
from pipelines.data.base import Source

T = TypeVar("T")


class InlineExecutor(ThreadPoolExecutor):
    """Runs work where it is submitted."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class LocalPrompts(PromptStream):
    """The prompt stream over rows that are read in this process, all of them at its start."""

    def __init__(self, source: Source, usable: Sequence[int], epochs: int | None) -> None:
        super().__init__(source, usable, epochs=epochs, put=lambda row: row)
        self._read = dict(source.rows())

    def _stream(self, rank: int) -> Iterator[tuple[int, Any]]:
        return ((position, self._read[position]) for position in self._usable[rank:])


class ReadRows:
    """A source whose raw rows have been read already."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def row(self, raw: Any, position: int) -> Any:
        return raw
