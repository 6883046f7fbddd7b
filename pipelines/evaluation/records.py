"""Per-item records of a held-out evaluation, checked when they are read.

A record is one JSON object per held-out item: `id`, `kind`, `text` and a verifier's counts `right`, `wrong`,
`missed`, `malformed`.

- `kind` "caption": mentions that are there, mentions that are not, objects that are not mentioned, clauses
  outside the grammar; optionally `length` (tokens).
- `kind` "random", "popular" or "adversarial": a yes/no question. `answer` is the *true* answer; exactly one
  of right, wrong and malformed (neither yes nor no) is 1.

`cluster` (optional) names what several items share, e.g. the scene that two questions are about; such items
are resampled together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

Record = Mapping[str, Any]

QUESTION_KINDS: Final = ("random", "popular", "adversarial")
KINDS: Final = ("caption", *QUESTION_KINDS)
COUNTS: Final = ("right", "wrong", "missed", "malformed")


class BadRecord(ValueError):
    """A record that cannot be counted: where it is, what is wrong with it and how to put it right."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file. Raises BadRecord with file and line for anything unreadable."""
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadRecord(f"{path}, line {number}: not JSON ({error.msg}); evaluate again") from error
        if not isinstance(record, dict):
            raise BadRecord(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        records.append(cast("dict[str, Any]", record))
    return records


def checked(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by kind, each list sorted by id, so that no result depends on their order.

    Raises BadRecord for an unknown kind, a missing or non-numeric part and for an id that occurs twice.
    """
    by_kind: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    seen: set[tuple[str, str]] = set()
    for position, record in enumerate(records):
        where = f"held-out record {position} (id {record.get('id')!r})"
        _check(record, where)
        key = (record["kind"], str(record["id"]))
        if key in seen:
            raise BadRecord(f"{where}: a second {key[0]} record with this id; every item is evaluated once")
        seen.add(key)
        by_kind[record["kind"]].append(record)
    return {kind: sorted(found, key=lambda r: str(r["id"])) for kind, found in by_kind.items()}


def _check(record: Record, where: str) -> None:
    kind = record.get("kind")
    if record.get("id") is None or not isinstance(record.get("text"), str):
        raise BadRecord(f"{where}: expected an id and a text, got the keys {sorted(record)}")
    if kind not in KINDS:
        raise BadRecord(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    for name in COUNTS:
        _check_count(record.get(name), name, where)
    if kind == "caption":
        if "length" in record:
            _check_count(record["length"], "length", where)
        return
    if record.get("answer") not in ("yes", "no"):
        raise BadRecord(f"{where}: the true answer is {record.get('answer')!r}, expected 'yes' or 'no'")
    verdict = [record[name] for name in ("right", "wrong", "malformed")]
    if sorted(verdict) != [0, 0, 1]:
        raise BadRecord(f"{where}: right, wrong, malformed are {verdict}, expected one 1 and two 0")


def _check_count(value: Any, name: str, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise BadRecord(f"{where}: {name} is {value!r}, expected a number of at least 0")
