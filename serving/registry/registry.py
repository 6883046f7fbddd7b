"""Registered checkpoints, which of them is promoted, and every decision that led there.

A folder, without a service. `history.jsonl` is the only truth: one line per act, appended under a lock and
synced before anybody is told; what is promoted, and which canary runs, follows from its lines. So a crash
leaves an act either done or not done: a last line without its end never happened.

FOLDER/history.jsonl      who did what when, why, and on what evidence
FOLDER/versions/v-.../    the checkpoints (`serving.registry.shelf`)
FOLDER/evidence/SHA256    what decisions rest on, named by its digest
"""

from __future__ import annotations

import getpass
import gzip
import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.checkpoints import BadCheckpoint, DiskFull
from pipelines import durable
from serving.checkpoint import NotServable, find_servable
from serving.registry.lineage import lineage_of
from serving.registry.shelf import VERSIONS, Vanished, locked, shelve, staged
from serving.wire import Version

HISTORY = "history.jsonl"
EVIDENCE = "evidence"
ID = re.compile(r"v-[0-9a-f]{12}")


class RegistryError(RuntimeError):
    """What a registry cannot do; the message says why, and what would be possible."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered checkpoint and where it comes from; what is not known of it is None."""

    id: str
    path: Path
    digest: str  # SHA-256 of its manifest
    registered_at: str  # ISO 8601, UTC
    run: str | None
    recipe: str | None
    data_digest: str | None
    weight_version: int | None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """What the history amounts to."""

    entries: dict[str, Entry] = field(default_factory=dict)
    promoted: list[str] = field(default_factory=list)  # the last one is the current one
    canary: tuple[str, float] | None = None
    acts: list[dict[str, Any]] = field(default_factory=list)


def as_version(entry: Entry) -> Version:
    return Version(id=entry.id, path=str(entry.path), digest=entry.digest)


class Registry:
    """The registry in `folder`, which the first registration makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._read: tuple[tuple[int, int], State] = ((0, 0), State())

    # -- looking ------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All that is registered, oldest first."""
        return list(self._state().entries.values())

    def entry(self, version_id: str) -> Entry:
        """Looked up by id alone, never by a path. Raises RegistryError."""
        return self._known(self._state(), version_id)

    def promoted(self) -> Entry | None:
        state = self._state()
        return state.entries[state.promoted[-1]] if state.promoted else None

    def previous(self) -> Entry | None:
        """What was promoted before the current one; a rollback goes there."""
        state = self._state()
        return state.entries[state.promoted[-2]] if len(state.promoted) > 1 else None

    def canary(self) -> tuple[Entry, float] | None:
        """The canary and the share of clients that it answers."""
        state = self._state()
        return (state.entries[state.canary[0]], state.canary[1]) if state.canary else None

    def history(self) -> list[dict[str, Any]]:
        """Every act, oldest first: seq, at, by, act, version, why and what belongs to the act."""
        return list(self._state().acts)

    # -- acting -------------------------------------------------------------------------------------------

    def register(self, target: Path) -> Entry:
        """Verify a checkpoint, or a run's newest one, and keep it. One that is known stays as it is.

        Raises RegistryError.
        """
        try:
            source = find_servable(target).path
            with staged(self.folder, source) as found, locked(self.folder):
                shelve(self.folder, found)
                known = self._state().entries.get(found.id)
                if known is None:
                    facts = {"digest": found.digest, **lineage_of(source)}
                    self._append("registered", found.id, entry=facts)
        except (NotServable, BadCheckpoint, Vanished, DiskFull) as error:
            raise RegistryError(str(error)) from None
        return self.entry(found.id)

    def promote(
        self,
        version_id: str,
        *,
        why: str,
        against: str | None,
        decision: Mapping[str, Any] | None = None,
        evidence: str | None = None,
    ) -> Entry:
        """Make a version the one that is served.

        `against`: the version that was promoted when this was decided (None: none was). Raises RegistryError
        where that is no longer so.
        """
        with locked(self.folder):
            state = self._state()
            entry = self._known(state, version_id)
            current = state.promoted[-1] if state.promoted else None
            if current != against:
                raise RegistryError(
                    f"{version_id} was compared with {against or 'nothing'}, but meanwhile {current} was "
                    "promoted; compare again"
                )
            if current == version_id:
                raise RegistryError(f"{version_id} is promoted already")
            self._append(
                "promoted", version_id, why=why, previous=current, decision=decision, evidence=evidence
            )
        return entry

    def refuse(
        self, version_id: str, *, why: str, against: str | None, decision: Mapping[str, Any], evidence: str
    ) -> None:
        """Record that a version was not promoted."""
        with locked(self.folder):
            self._known(self._state(), version_id)
            self._append(
                "refused", version_id, why=why, previous=against, decision=decision, evidence=evidence
            )

    def rollback(self, reason: str, to: str | None = None) -> Entry:
        """Go back to the version that was promoted before the current one, or to a named earlier one.

        Raises RegistryError.
        """
        with locked(self.folder):
            state = self._state()
            if not state.promoted:
                raise RegistryError(f"{self.folder}: nothing was ever promoted, so there is nothing to undo")
            if to is None:
                if len(state.promoted) < 2:
                    raise RegistryError(
                        f"{state.promoted[-1]} is the only version that was promoted; promote another one"
                    )
                to = state.promoted[-2]
            entry = self._known(state, to)
            if to == state.promoted[-1]:
                raise RegistryError(f"{to} is promoted already")
            if all(act["version"] != to for act in state.acts if act["act"] == "promoted"):
                raise RegistryError(f"{to} was never promoted, so it is nothing to go back to; promote it")
            self._append("rolled_back", to, why=reason, previous=state.promoted[-1])
        return entry

    def set_canary(
        self, version_id: str | None, weight: float, reason: str, *, only: str | None = None
    ) -> None:
        """Let a version answer a share of the clients, 0 to 1; None ends the canary.

        `only`: change nothing unless this version is the canary. Raises RegistryError.
        """
        if not 0 <= weight <= 1:
            raise RegistryError(f"weight: expected a share of the clients from 0 to 1, got {weight}")
        with locked(self.folder):
            state = self._state()
            running = state.canary[0] if state.canary else None
            if only is not None and running != only:
                return
            if version_id is None:
                if running is not None:
                    self._append("canary_ended", running, why=reason)
                return
            self._known(state, version_id)
            if not state.promoted:
                raise RegistryError("a canary runs beside a promoted version, and there is none yet; promote")
            if version_id == state.promoted[-1]:
                raise RegistryError(f"{version_id} is promoted already; a canary is another version")
            self._append("canary", version_id, why=reason, weight=weight)

    def keep_evidence(self, value: Any) -> str:
        """Store what a decision rests on; returns its SHA-256, which is its name."""
        content = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()
        durable.replace_file(self.folder / EVIDENCE / f"{digest}.json.gz", gzip.compress(content, mtime=0))
        return digest

    def evidence(self, digest: str) -> Any:
        """What `keep_evidence` stored. Raises RegistryError where it is gone or was changed."""
        file = self.folder / EVIDENCE / f"{digest}.json.gz"
        try:
            content = gzip.decompress(file.read_bytes())
        except (OSError, EOFError) as error:
            raise RegistryError(f"{file}: the evidence cannot be read: {error}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise RegistryError(f"{file}: its content is not what its name says; it was changed")
        return json.loads(content)

    # -- the history --------------------------------------------------------------------------------------

    def _known(self, state: State, version_id: str) -> Entry:
        if ID.fullmatch(version_id) is None:
            raise RegistryError(f"expected a version such as v-0123456789ab, got {version_id!r:.40}")
        if version_id not in state.entries:
            raise RegistryError(f"{version_id} is not registered in {self.folder}; `plumbline history` lists")
        return state.entries[version_id]

    def _state(self) -> State:
        """The history folded; read again only when it has changed."""
        try:
            found = os.stat(self.folder / HISTORY)
        except FileNotFoundError:
            return State()
        seen = (found.st_size, found.st_mtime_ns)
        if seen != self._read[0]:
            self._read = (seen, self._fold(self._content()))
        return self._read[1]

    def _content(self) -> bytes:
        """Whole lines: what a crash left without its newline never happened."""
        try:
            content = (self.folder / HISTORY).read_bytes()
        except FileNotFoundError:
            return b""
        return content[: content.rfind(b"\n") + 1]

    def _fold(self, content: bytes) -> State:
        state = State()
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                act = json.loads(line)
                if act["seq"] != number:
                    raise ValueError(f"its seq is {act['seq']}")
                self._apply(state, act)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise RegistryError(
                    f"{self.folder / HISTORY}:{number}: the history was changed or damaged ({error!r}); "
                    "restore the file from a backup"
                ) from error
            state.acts.append(act)
        return state

    def _apply(self, state: State, act: dict[str, Any]) -> None:
        version = act["version"]
        match act["act"]:
            case "registered":
                path = self.folder / VERSIONS / version
                state.entries[version] = Entry(id=version, path=path, registered_at=act["at"], **act["entry"])
            case "promoted":
                state.promoted.append(version)
            case "rolled_back":
                known = version in state.promoted
                last = len(state.promoted) - state.promoted[::-1].index(version) if known else None
                state.promoted[:] = state.promoted[:last] if known else [*state.promoted, version]
            case "canary":
                state.canary = (version, float(act["weight"]))
            case "canary_ended":
                state.canary = None
            case "refused":
                pass
            case other:
                raise ValueError(f"unknown act {other!r}")
        if state.canary and state.promoted and state.canary[0] == state.promoted[-1]:
            state.canary = None  # it answers everybody now

    def _append(self, act: str, version: str, **facts: Any) -> None:
        """For the holder of the lock. Done when it returns, not done when it raises."""
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        record = {
            "seq": len(self._state().acts) + 1,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "by": by,
            "act": act,
            "version": version,
            **facts,
        }
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            durable.append(self.folder / HISTORY, line, 0o644)
        except OSError as error:
            raise RegistryError(f"{self.folder / HISTORY}: cannot be written: {error}") from error
