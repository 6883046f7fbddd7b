"""What people thought of served answers, as rows: `data.source=serving://FOLDER`.

A server (`serving.feedback`) appends to the folder; this module owns its format and folds it into rows.

FOLDER/log/00000001.jsonl    what happened, one JSON object per line: answers and feedback on them
FOLDER/media/SHA256.png      the pictures of their prompts
FOLDER/rows/DIGEST.jsonl     rows that runs were started with

The rows are folded when a run starts or resumes and stay as they are until then: what people say meanwhile
waits for the next start. Only a client who wants to be forgotten changes them: its rows become empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipelines import durable
from pipelines.data.base import BadRow, DataError, Inventory
from pipelines.data.files import FileSource, parse_line

LOG: Final = "log"
MEDIA: Final = "media"
ROWS: Final = "rows"
LOCK: Final = ".lock"
NEEDED: Final = {  # keys of an event -> what they hold
    "answer": {"id": str, "client": str, "version": str, "messages": list, "images": list, "answer": str},
    "rating": {"id": str, "client": str, "rating": int},
    "choice": {"chosen": str, "rejected": str, "client": str},
    "correction": {"id": str, "client": str, "correction": str},
}

Event = dict[str, Any]


@dataclass(kw_only=True)
class Log:
    """The events of a folder, read once."""

    events: list[Event] = field(default_factory=list[Event])
    bad: list[BadRow] = field(default_factory=list[BadRow])
    torn: int = 0  # last lines that a crash cut short; they never happened


@dataclass(frozen=True, kw_only=True)
class ServedSource(FileSource):
    """Rows of a fold; damaged lines of the log are bad rows as well."""

    damaged: tuple[BadRow, ...] = ()

    def inventory(self) -> Inventory:
        found = super().inventory()
        return Inventory(usable=found.usable, bad=(*self.damaged, *found.bad))


def open_served(folder: Path, **options: Any) -> ServedSource:
    """Fold the folder's log into rows and open them. Raises DataError where there is no log."""
    if not (folder / LOG).is_dir():
        raise DataError(
            f"data.source: serving://{folder}: nothing is kept there; give the feedback.folder of a server"
        )
    with locked(folder):
        log = read(folder)
        lines = [json.dumps(row, ensure_ascii=False) if row else "" for row in fold(log.events)]
        content = "".join(f"{line}\n" for line in lines).encode()
        path = folder / ROWS / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
        if not path.exists():
            durable.replace_file(path, content)
    return ServedSource(path=path, kind="jsonl", damaged=tuple(log.bad), **options)


def locked(folder: Path) -> AbstractContextManager[None]:
    """One writer at a time."""
    return durable.locked(folder / LOCK, 0o600)


def segments(folder: Path) -> list[Path]:
    """Files of the log, oldest first."""
    return sorted((folder / LOG).glob("*.jsonl"))


def read(folder: Path) -> Log:
    """Every whole line of the log; one that is no event is listed, never skipped silently."""
    log = Log()
    for path in segments(folder):
        *lines, rest = path.read_bytes().split(b"\n")
        log.torn += bool(rest)
        for number, line in enumerate(lines, start=1):
            try:
                log.events.append(event(line, f"{path.name}:{number}"))
            except BadRow as error:
                log.bad.append(error)
    return log


def event(line: bytes, where: str) -> Event:
    """One checked event. Raises BadRow."""
    found = parse_line(line, where)
    needed = NEEDED.get(str(found.get("kind")))
    if needed is None:
        raise BadRow(where, "`kind`", repr(found.get("kind"))[:80], f"one of {', '.join(NEEDED)}")
    for key, kind in needed.items():
        if not isinstance(found.get(key), kind):
            raise BadRow(where, f"`{key}`", type(found.get(key)).__name__, kind.__name__)
    return found


def key_of(event: Event) -> tuple[str, ...]:
    """What an event speaks of; a later one of the same key takes the earlier one's place."""
    if event["kind"] == "choice":
        return ("choice", *sorted((event["chosen"], event["rejected"])))
    return (event["kind"], event["id"])


def prompt_key(answer: Event) -> str:
    """Digest of what was asked, pictures included; equal ones are the same prompt."""
    text = json.dumps([answer["messages"], answer["images"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fold(events: Sequence[Event]) -> list[dict[str, Any] | None]:
    """A row, or None where nothing is left of it, for each thing spoken of, in order of first mention.

    A choice is a pair, a correction is a pair with the answer that it corrects, and an answer that was liked
    is paired with one to the same prompt that was disliked; without one it is a good or a bad answer by
    itself. An answer without feedback is a prompt alone. Feedback whose answer is gone is left out.
    """
    latest: dict[tuple[str, ...], Event] = {}
    for item in events:
        if item["kind"] != "answer" or key_of(item) not in latest:
            latest[key_of(item)] = item  # keeps the place of the first one
    answers = {item["id"]: item for item in latest.values() if item["kind"] == "answer"}
    said = {name for item in latest.values() if item["kind"] != "answer" for name in named(item)}
    partners = _partners([item for item in latest.values() if item["kind"] == "rating"], answers)
    return [_row(item, answers, said, partners) for item in latest.values()]


def named(event: Event) -> tuple[str, ...]:
    """Ids of the answers that feedback is on."""
    return (event["chosen"], event["rejected"]) if event["kind"] == "choice" else (event["id"],)


def _partners(ratings: Sequence[Event], answers: dict[str, Event]) -> dict[str, str | None]:
    """Rated answer -> its partner of the opposite rating; of two partners the later one has None."""
    waiting: dict[tuple[str, int], list[str]] = {}
    partners: dict[str, str | None] = {}
    for rating in (item for item in ratings if item["id"] in answers):
        name, prompt = rating["id"], prompt_key(answers[rating["id"]])
        opposite = waiting.get((prompt, -rating["rating"]))
        if opposite:
            partners[opposite.pop(0)] = name
            partners[name] = None
        else:
            waiting.setdefault((prompt, rating["rating"]), []).append(name)
    return partners


def _row(
    item: Event, answers: dict[str, Event], said: set[str], partners: dict[str, str | None]
) -> dict[str, Any] | None:
    if any(name not in answers for name in named(item)):
        return None
    match item:
        case {"kind": "choice", "chosen": str(chosen), "rejected": str(rejected)}:
            return _sides(item, answers, chosen, rejected)
        case {"kind": "correction", "id": str(name), "correction": str(text)}:
            return _sides(item, answers, None, name) | {"chosen": text, "sides": "pair"}
        case {"kind": "rating", "id": str(name), "rating": int(rating)}:
            partner = partners.get(name)
            if name in partners and partner is None:
                return None
            return _sides(item, answers, *((name, partner) if rating > 0 else (partner, name)))
        case {"id": str(name)}:
            shown = None if name in said else _shown(answers[name], f"answer:{name}")
            return None if shown is None else shown | {"answers": [name]}
        case _:
            return None


def _sides(item: Event, answers: dict[str, Event], good: str | None, bad: str | None) -> dict[str, Any]:
    names = [name for name in (good, bad) if name is not None]
    sides = {"chosen": answers[good]["answer"]} if good is not None else {}
    sides |= {"rejected": answers[bad]["answer"]} if bad is not None else {}
    return {
        **_shown(answers[names[0]], ":".join(key_of(item))),
        **sides,
        "feedback": item["kind"],
        "sides": "pair" if len(sides) == 2 else "good" if good is not None else "bad",
        "answers": names,
        "versions": [answers[name]["version"] for name in names],
    }


def _shown(answer: Event, name: str) -> dict[str, Any]:
    images = [f"../{MEDIA}/{image}" for image in answer["images"]]
    return {"id": name, "prompt": answer["messages"], "images": images}


def rewrite(folder: Path, keep: Callable[[Event], bool], gone: set[str]) -> None:
    """For the holder of the lock: leave out events, and empty the rows that tell of the answers `gone`.

    Lines that cannot be read are left out as well: nobody can say whom they tell of.
    """
    for path in segments(folder):
        lines = [line for line, found in _readable(path) if keep(found)]
        durable.replace_file(path, b"".join(line + b"\n" for line in lines))
    for path in (folder / ROWS).glob("*.jsonl"):
        rows = path.read_bytes().split(b"\n")[:-1]
        left = [b"" if line and gone & set(json.loads(line)["answers"]) else line for line in rows]
        durable.replace_file(path, b"".join(line + b"\n" for line in left))


def _readable(path: Path) -> Iterator[tuple[bytes, Event]]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            yield line, event(line, path.name)
        except BadRow:
            continue
