"""What a source of prompts is, and what becomes of a row that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.types import Media, Prompt

Row = Mapping[str, Any]


class DataError(ValueError):
    """The data as a whole cannot be used: no such file, no usable rows, too many bad ones."""


class BadRow(ValueError):
    """One row that cannot be used: where it is, what is wrong, what was found and what was expected.

    Both an exception and a record: it crosses process borders unchanged and is listed in `bad_rows.jsonl`.
    """

    def __init__(self, where: str, what: str, got: str, expected: str, fix: str = "") -> None:
        super().__init__(where, what, got, expected, fix)  # the positional arguments make it picklable
        self.where, self.what, self.got, self.expected, self.fix = where, what, got, expected, fix

    def __str__(self) -> str:
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.where}: {self.what}: got {self.got}, expected {self.expected}{fix}"

    def to_json(self) -> dict[str, str]:
        names = ("where", "what", "got", "expected", "fix")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Every row looked at once, before anything starts. Positions count from 0 in file order."""

    usable: Sequence[int]
    bad: tuple[BadRow, ...] = ()


class Source(Protocol):
    """Rows, and how one of them becomes a prompt. Small and picklable: every worker holds a copy.

    The cursor of a run is a position in the file (JSONL: the line, empty ones included; Parquet: the row; the
    embedded world: the scene), counted from 0. A row knows its own id, so that it can travel alone.
    """

    @property
    def kind(self) -> Literal["glyphs", "jsonl", "parquet"]: ...

    @property
    def path(self) -> Path | None:
        """The file that a streaming reader opens; None when rows are made from their position alone."""
        ...

    def inventory(self) -> Inventory:
        """Look at all rows without keeping them. Raises DataError when the file as a whole is unusable."""
        ...

    def row(self, raw: Any, position: int) -> Row:
        """A checked row from what a streaming reader hands over: a line of text (JSONL), a mapping
        (Parquet), anything (glyphs). Raises BadRow."""
        ...

    def prompt(self, row: Row) -> tuple[Prompt, dict[str, Media]]:
        """Materialise a row that `row` gave, with its media loaded or rendered. Raises BadRow."""
        ...

    def rows(self) -> Iterator[tuple[int, Row]]:
        """All usable rows in order with their positions, for work in one process."""
        ...


def admit(inventory: Inventory, max_bad_rows: int, listing: Path | None = None) -> None:
    """Let a run go on with its usable rows, or raise DataError.

    The bad rows are written to `listing` first (one JSON object per line), whatever comes of it.
    """
    bad = inventory.bad
    if listing is not None and bad:
        write_bad_rows(bad, listing)
    if len(bad) > max_bad_rows:
        shown = "\n".join(f"  {row}" for row in bad[:5])
        more = f"\n  ... and {len(bad) - 5} more" if len(bad) > 5 else ""
        listed = f"; all are listed in {listing}" if listing is not None else ""
        raise DataError(
            f"{len(bad)} bad row{'' if len(bad) == 1 else 's'}, but data.max_bad_rows is {max_bad_rows}"
            f"{listed}:\n{shown}{more}"
        )
    if not inventory.usable:
        raise DataError("0 usable rows: the data is empty; give a file with at least one row")


def write_bad_rows(rows: Sequence[BadRow], listing: Path) -> None:
    """Append rows to `bad_rows.jsonl`, one JSON object per line."""
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row.to_json(), ensure_ascii=True) + "\n" for row in rows)
