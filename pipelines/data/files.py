"""Somebody's own rows: a JSONL or Parquet file with a `prompt`, optional `images` and free columns.

Every row is checked the same way in the inventory, before anything starts, and when it is streamed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from pipelines.data import images
from pipelines.data.base import BadRow, DataError, Inventory, Row
from pipelines.data.conversations import Turn, check_unicode, read_prompt
from pipelines.types import Media, Message, Part, Prompt

T = TypeVar("T")

MAX_LINE: Final = 16 * 2**20  # bytes; a longer line is a file without line breaks
_BATCH: Final = 64  # Parquet rows held at once


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Rows of a JSONL or Parquet file. `open_file` chooses the reader by the file's name.

    A row may give `prompt` (see `read_prompt`), `images` or `image` (paths relative to the file; in Parquet
    also bytes, or {"bytes", "path"}), and `id`. All other columns reach the reward as they are.
    """

    path: Path
    kind: Literal["jsonl", "parquet"]
    special: Collection[str] = ()  # strings of the model's special tokens, refused in text
    max_images: int = 4  # of one prompt; 0 for a model without vision
    count: int | None = None  # at most this many usable rows

    def inventory(self) -> Inventory:
        """Read, check and count every row; pictures are opened and decoded, but not kept."""
        usable: list[int] = []
        bad: list[BadRow] = []
        for position, found in self._checked():
            if isinstance(found, BadRow):
                bad.append(found)
            else:
                usable.append(position)
        return Inventory(usable=usable, bad=tuple(bad))

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Lazy: who takes the first few rows has only those opened."""
        return ((at, found) for at, found in self._checked() if not isinstance(found, BadRow))

    def _checked(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Every row with its position, up to `count` usable ones."""
        seen: dict[str, str] = {}
        for position, raw in self._raw():
            if self.count is not None and len(seen) == self.count:
                return
            try:
                row = self.row(raw, position)
                self._look_at_images(row)
                if row["id"] in seen:
                    raise BadRow(
                        row["where"], "`id`", f"{row['id']!r} again", f"one not used at {seen[row['id']]}"
                    )
            except BadRow as error:
                yield position, error
                continue
            seen[row["id"]] = row["where"]
            yield position, row

    def row(self, raw: Any, position: int) -> Row:
        """A checked row: id, where, turns, images (locations or bytes) and gold (the free columns)."""
        where = (
            f"{self.path.name}:{position + 1}"
            if self.kind == "jsonl"
            else f"{self.path.name} row {position + 1}"
        )
        fields = parse_line(raw, where, first=position == 0) if self.kind == "jsonl" else dict(raw)
        pictures = _image_list(fields, where)
        if len(pictures) > self.max_images:
            expected = f"at most {self.max_images}" if self.max_images else "none: this model reads text only"
            raise BadRow(where, "images", str(len(pictures)), expected)
        if "prompt" not in fields:
            raise BadRow(where, "the row", f"columns {sorted(fields)}", "a column `prompt`")
        turns = read_prompt(fields["prompt"], len(pictures), self.special, where)
        return {
            "id": _row_id(fields.get("id"), f"{self.path.stem}:{position + 1}", where),
            "where": where,
            "turns": turns,
            "images": pictures,
            "gold": {k: v for k, v in fields.items() if k not in ("id", "prompt", "images", "image")},
        }

    def prompt(self, row: Row) -> tuple[Prompt, dict[str, Media]]:
        pictures = tuple(self._image(row, number, images.load) for number in range(len(row["images"])))
        return as_prompt(row["id"], row["turns"], pictures, row["gold"])

    def _look_at_images(self, row: Row) -> None:
        for number in range(len(row["images"])):
            self._image(row, number, images.check)

    def _image(self, row: Row, number: int, use: Callable[[Path | bytes], T]) -> T:
        given: str | bytes = row["images"][number]
        named = f"image {number + 1}" + (f" ({given})" if isinstance(given, str) else "")
        try:
            return use(given if isinstance(given, bytes) else self.path.parent / given)
        except images.BadImage as error:
            raise BadRow(row["where"], named, error.got, error.expected) from None

    def _raw(self) -> Iterator[tuple[int, Any]]:
        return _lines(self.path) if self.kind == "jsonl" else _records(self.path)


def as_prompt(
    name: str, turns: Sequence[Turn], pictures: Sequence[Media], gold: Mapping[str, Any]
) -> tuple[Prompt, dict[str, Media]]:
    """A prompt and its media from checked turns; the pictures fill the image parts in order."""
    order = iter(pictures)

    def part(kind: str, text: str) -> Part:
        return (
            Part(kind="image", digest=next(order).digest) if kind == "image" else Part(kind="text", text=text)
        )

    messages = tuple(
        Message(role=turn.role, parts=tuple(part(kind, text) for kind, text in turn.parts)) for turn in turns
    )
    return Prompt(id=name, messages=messages, gold=gold), {media.digest: media for media in pictures}


def open_file(path: Path, **options: Any) -> FileSource:
    """A source for a .jsonl or .parquet file. Raises DataError for anything else."""
    if path.is_dir():
        raise DataError(f"data.source: {path} is a directory; give one .jsonl or .parquet file")
    if not path.exists():
        raise DataError(f"data.source: {path}: no such file")
    kinds: dict[str, Literal["jsonl", "parquet"]] = {".jsonl": "jsonl", ".parquet": "parquet"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"data.source: {path}: expected a name that ends in .jsonl or .parquet, got {path.suffix!r}"
        )
    return FileSource(path=path, kind=kind, **options)


def parse_line(line: str | bytes, where: str, *, first: bool = False) -> dict[str, Any]:
    """The object of one JSONL line, read strictly: no duplicate keys, no NaN, no lone surrogates."""
    if isinstance(line, bytes):
        line = _decoded(line, where)
    if first:
        line = line.removeprefix("\ufeff")
    if "\0" in line:
        raise BadRow(
            where, "the line", "a NUL character", "JSON text in UTF-8", "Is the file UTF-16 or binary?"
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise BadRow(where, "the line", f"the key {key!r} twice", "every key once")
            found[key] = value
        return found

    def number(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")) or value != value:
            raise BadRow(
                where, "the line", f"the number {text}", "finite numbers", "Write null where none is known"
            )
        return value

    try:
        value: Any = json.loads(line, object_pairs_hook=pairs, parse_constant=number, parse_float=number)
    except BadRow:
        raise
    except json.JSONDecodeError as error:
        raise BadRow(
            where, "the line", f"broken JSON ({error.msg}, column {error.colno})", "one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadRow(
            where, "the line", f"JSON that cannot be read ({error})"[:120], "one JSON object"
        ) from None
    if not isinstance(value, dict):
        raise BadRow(where, "the line", f"a JSON {type(value).__name__}", "a JSON object")
    if "\\u" in line:  # only an escape can bring in a lone surrogate
        check_unicode(json.dumps(value, ensure_ascii=False), "the line", where)
    return cast("dict[str, Any]", value)


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise BadRow(where, "the line", got, "UTF-8 text") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their positions; lines of nothing but white space are skipped but counted."""
    with path.open("rb") as file:
        head = file.read(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                f"{path}: expected UTF-8 text, got UTF-16; convert it, e.g. iconv -f UTF-16 -t UTF-8"
            )
        file.seek(0)
        position = 0
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{path}:{position + 1}: a line longer than {MAX_LINE // 2**20} MiB; one row per line"
                )
            if line.strip():
                yield position, line.rstrip(b"\r\n")
            position += 1


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    pa: Any = importlib.import_module("pyarrow")  # it ships no types
    pq: Any = importlib.import_module("pyarrow.parquet")
    try:
        file: Any = pq.ParquetFile(path)
        schema: Any = file.schema_arrow
        for column in schema:
            if isinstance(column.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (
                column.metadata or {}
            ):
                raise DataError(
                    f"{path}: column {column.name!r} has the extension type {column.type}; use plain types"
                )
        position = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            for record in batch.to_pylist():
                yield position, record
                position += 1
    except DataError:
        raise
    except Exception as error:  # also what extension types raise that a library of this process registered
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: not a readable Parquet file: {why}") from None


def _row_id(given: Any, default: str, where: str) -> str:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise BadRow(where, "`id`", repr(given)[:80], "text or a whole number")
    return str(given)


def _image_list(fields: Mapping[str, Any], where: str) -> list[str | bytes]:
    several, single = fields.get("images"), fields.get("image")
    if several is not None and single is not None:
        raise BadRow(where, "the row", "both `images` and `image`", "one of them")
    if several is None:
        several = [] if single is None else [single]
    if not isinstance(several, list):
        raise BadRow(where, "`images`", type(several).__name__, "a list of paths")
    return [_image_source(given, where) for given in cast("list[Any]", several)]


def _image_source(given: Any, where: str) -> str | bytes:
    if isinstance(given, Mapping):  # as the datasets library writes images into Parquet
        entry = cast("Mapping[str, Any]", given)
        given = entry.get("bytes") or entry.get("path")
    if isinstance(given, bytes) and given:
        return given
    if not isinstance(given, str) or not given or "\0" in given:
        raise BadRow(where, "an entry of `images`", repr(given)[:80], "a path, or bytes in Parquet")
    if given.startswith(("http://", "https://", "data:", "file:")):
        fix = "Pictures are not fetched; store them as files beside the data"
        raise BadRow(where, "an entry of `images`", repr(given)[:80], "a path", fix)
    return given
