"""Deleting what a folder of feedback holds of a client, or of one answer; safe beside servers that write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.data import served
from pipelines.data.served import Event

Tells = Callable[[Event], bool]  # whether an event tells of whom, or what, is to be forgotten


class NothingKept(ValueError):
    """The folder holds no feedback."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How much there is of it."""

    answers: int
    feedback: int
    pictures: int  # that nothing else shows


def of_client(client: str) -> Tells:
    return lambda event: event["client"] == client


def of_answer(answer_id: str) -> Tells:
    """The answer, and all feedback that names it."""
    return lambda event: answer_id in served.named(event)


def count(folder: Path, tells: Tells) -> Kept:
    """What `forget` would delete. Raises NothingKept."""
    _require(folder)
    with served.locked(folder):
        return _counted(served.read(folder).events, tells)


def forget(folder: Path, tells: Tells) -> Kept:
    """Delete it: lines of the log, rows that runs were started with, pictures. Raises NothingKept.

    Damaged lines go as well, since nobody can say whom they tell of. What a server holds in memory stays
    there for its hour; it is written only if its client speaks of it afterwards.
    """
    _require(folder)
    with served.locked(folder):
        events = served.read(folder).events
        gone = {event["id"] for event in events if event["kind"] == "answer" and tells(event)}
        served.rewrite(folder, lambda event: not tells(event), gone)
        sweep(folder)
        for name in (served.LOG, served.ROWS):
            for partial in (folder / name).glob(".*.jsonl.*"):  # of a write that a crash cut short
                partial.unlink()
        return _counted(events, tells)


def sweep(folder: Path) -> None:
    """For the holder of the folder's lock: delete the pictures that no event shows."""
    shown = _shown(served.read(folder).events)
    for path in (folder / served.MEDIA).iterdir():
        if path.name not in shown:
            path.unlink()


def _counted(events: list[Event], tells: Tells) -> Kept:
    told = [event for event in events if tells(event)]
    answers = sum(event["kind"] == "answer" for event in told)
    left = _shown([event for event in events if not tells(event)])
    return Kept(answers=answers, feedback=len(told) - answers, pictures=len(_shown(told) - left))


def _shown(events: list[Event]) -> set[str]:
    return {image for event in events for image in event.get("images", ())}


def _require(folder: Path) -> None:
    if not (folder / served.LOG).is_dir():
        raise NothingKept(f"{folder}: no feedback is kept there; give the feedback.folder of a server")
