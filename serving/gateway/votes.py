"""Feedback as a live measurement: which slot gave the answers that somebody judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

REMEMBERED = 10_000  # answers; feedback on older ones is kept by its store and measures nothing


class Origin(NamedTuple):
    model: str
    slot: str
    version: str


class Votes:
    """Remembers where the latest answers came from."""

    def __init__(self) -> None:
        self._origins: dict[str, Origin] = {}  # oldest first

    def note(self, answer_id: str, origin: Origin) -> None:
        self._origins[answer_id] = origin
        if len(self._origins) > REMEMBERED:
            del self._origins[next(iter(self._origins))]

    def samples(self, feedback: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Slot and measurement: a rating, or whether the canary won against the stable version."""
        if feedback["kind"] == "rating" and (origin := self._origins.get(feedback["id"])) is not None:
            yield origin.slot, _sample(origin) | {"rating": feedback["rating"]}
        if feedback["kind"] == "choice":
            both = [self._origins.get(feedback[side]) for side in ("chosen", "rejected")]
            slots = {one.slot: one for one in both if one is not None}
            if both[0] is not None and set(slots) == {"stable", "canary"}:
                yield "canary", _sample(slots["canary"]) | {"won": both[0].slot == "canary"}


def _sample(origin: Origin) -> dict[str, Any]:
    return {"model": origin.model, "version": origin.version}
