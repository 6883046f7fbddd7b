"""What an answer must be, and what a failed try is put down to. Nothing here runs anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.serving.chaos.load import Request, Try

Cause = Literal["kill", "swap", "other"]
#: Codes that only a change-over gives, whatever else happened at the time.
OF_A_SWAP = ("swapping", "mixed_versions", "version_changed")


@dataclass(frozen=True, kw_only=True)
class Spelled:
    """What an answer's text shows, its header aside."""

    versions: frozenset[str]
    whole: bool = True


#: The n-th request's text -> what it shows.
Spell = Callable[[int, str], Spelled]


@dataclass(frozen=True, kw_only=True)
class Window:
    """From an event until everything was again as it should be."""

    cause: Literal["kill", "swap"]
    began: float
    ended: float = math.inf

    def meets(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


@dataclass
class Tenures:
    """When answers of a version were right: from its promotion until every replica had a later one."""

    _since: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    _settled: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

    def promoted(self, version: str, at: float) -> None:
        """`at`: right before the registry was told."""
        self._since.append((version, at))

    def settled(self, version: str, at: float) -> None:
        """Every replica serves it."""
        self._settled.append((version, at))

    def allows(self, version: str, began: float, ended: float) -> bool:
        """Whether the version was right at some time between the request's start and its end."""
        return any(since <= ended and began <= until for since, until in self._tenures(version))

    def _tenures(self, version: str) -> Iterator[tuple[float, float]]:
        for known, since in self._since:
            if known == version:
                later = (at for other, at in self._settled if other != version and at > since)
                yield since, min(later, default=math.inf)


def wrong(request: Request, attempt: Try, spell: Spell, tenures: Tenures) -> list[str]:
    """Everything that no answer with status 200 may be, in words that begin with its kind."""
    if not attempt.good:
        return []
    named, shown = set(attempt.versions), spell(request.number, attempt.text)
    found: list[str] = []
    if len(named) != 1:
        found.append(f"mixed: header and chunks name {sorted(named)}")
    if len(shown.versions) > 1:
        found.append(f"mixed: the text is of {sorted(shown.versions)}")
    if not shown.whole:
        found.append(f"lost: the text is not whole: {attempt.text[-80:]!r}")
    elif not shown.versions <= named or not shown.versions:
        found.append(f"mixed: named {sorted(named)}, the text is of {sorted(shown.versions)}")
    for version in sorted(named):
        if not tenures.allows(version, attempt.began, attempt.ended):
            found.append(f"wrong version: {version} was not to be served then")
    return found


def cause(attempt: Try, windows: Sequence[Window]) -> Cause:
    """Of a failed try. What happened while a replica was gone is put down to its death: what swaps alone
    cause is counted where no kill is near."""
    if attempt.code in OF_A_SWAP:
        return "swap"
    for each in ("kill", "swap"):
        if any(one.cause == each and one.meets(attempt.began, attempt.ended) for one in windows):
            return each
    return "other"


def clean_swaps(windows: Iterable[Window]) -> list[Window]:
    """Change-overs during which no replica was gone."""
    known = list(windows)
    kills = [one for one in known if one.cause == "kill"]
    return [
        one
        for one in known
        if one.cause == "swap" and not any(kill.meets(one.began, one.ended) for kill in kills)
    ]
