"""API keys: a file of salted hashes, read again when it changes.

A key is 256 random bits, so nobody can guess it from its hash: one SHA-256 over salt and key is as good as a
slow password hash, and cheap enough for every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

from pydantic import Field, TypeAdapter, ValidationError

from pipelines import durable
from pipelines.settings import Section
from serving.gateway import logs
from serving.gateway.errors import ApiError
from serving.settings import QuotaSettings

PREFIX = "pl"
_KEY = re.compile(rf"{PREFIX}-([0-9a-f]{{8}})-([A-Za-z0-9_-]{{43}})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_URL_NAMES = re.compile(r"(?i)(x[-_])?(api[-_]?key|key|(access[-_]?|auth[-_]?)?token|authorization|bearer)")


class KeysError(Exception):
    """A file of keys that cannot be used, or a name that cannot be given; for people."""


@dataclass(frozen=True)
class Client:
    """Who asks. No field says anything about the key."""

    id: str
    quota: QuotaSettings | None = None
    consents: bool = False  # to its answers being kept


class Entry(Section):
    """A key as it is stored: what it hashes to, never the key."""

    key: str  # the part of the key that is no secret
    client: str
    salt: str = Field(repr=False)
    hash: str = Field(repr=False)
    created: str
    revoked: str | None = None
    quota: QuotaSettings | None = None
    consents: bool = False


_ENTRIES = TypeAdapter(list[Entry])


class Keys:
    """The keys of a file. A change of it counts from the next request on; a broken one admits nobody."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, ...] = ()
        self._known: dict[str, Entry] = {}

    @classmethod
    def load(cls, file: Path) -> Keys:
        """Raises KeysError."""
        keys = cls(file)
        keys._stamp = _stamp(file)
        keys._known = {entry.key: entry for entry in entries(file)}
        return keys

    def check(self, authorization: str | None) -> Client | None:
        """The client of an Authorization header ("Bearer KEY"); None: no such key, or it is revoked."""
        self._refresh()
        given = _KEY.fullmatch((authorization or "").removeprefix("Bearer "))
        if given is None or not (authorization or "").startswith("Bearer "):
            return None
        entry = self._known.get(given[1])
        # An unknown key costs as much as a wrong one.
        expected = entry.hash if entry is not None else "0" * 64
        right = hmac.compare_digest(_hash(entry.salt if entry else "", given[2]), expected)
        if entry is None or not right or entry.revoked is not None:
            return None
        return Client(entry.client, entry.quota, entry.consents)

    def _refresh(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp, self._known = stamp, {}
        try:
            self._known = {entry.key: entry for entry in entries(self._file)}
        except KeysError as error:
            logs.failure("the file of keys cannot be used; no key is accepted until it is mended", error)


def refuse_in_url(query: bytes) -> None:
    """Raises ApiError (401) for a query that carries a key: URLs end up in logs and histories."""
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=None):
        if _URL_NAMES.fullmatch(name) or _KEY.search(value):
            where = name if _URL_NAMES.fullmatch(name) else "query"
            raise ApiError(
                401,
                f"{where}: keys are not taken from the URL, which ends up in logs; send "
                "'Authorization: Bearer KEY', and replace a key that was sent this way",
                param=where,
            )


def add(file: Path, name: str, quota: QuotaSettings | None = None, consents: bool = False) -> str:
    """A new key for a client; it is stored nowhere, so show it now. `consents`: to its answers being kept.
    Raises KeysError."""
    if not _NAME.fullmatch(name):
        raise KeysError(f"name {name!r:.80}: expected 1 to 64 letters, digits, dots, dashes or underscores")
    with _locked(file):
        known = entries(file) if file.exists() else []
        key, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        hashed = _hash(salt, secret)
        new = Entry(
            key=key, client=name, salt=salt, hash=hashed, created=_now(), quota=quota, consents=consents
        )
        _write(file, [*known, new])
    return f"{PREFIX}-{key}-{secret}"


def revoke(file: Path, name: str) -> int:
    """Revoke every key of a client, or the one key of that id; how many that were. Raises KeysError."""
    with _locked(file):
        known = entries(file)
        ended = [one.key for one in known if name in (one.client, one.key) and one.revoked is None]
        if not ended:
            raise KeysError(f"{file}: {name!r:.80} has no key that could be revoked; list shows them")
        now = _now()
        _write(file, [one.model_copy(update={"revoked": now}) if one.key in ended else one for one in known])
    return len(ended)


def entries(file: Path) -> list[Entry]:
    """All keys ever given, oldest first. Raises KeysError."""
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise KeysError(f"{file}: others may read it (mode {mode:o}); run: chmod 600 {file}")
            return _ENTRIES.validate_json(stream.read())
    except OSError as error:
        raise KeysError(f"{file}: cannot be read: {error.strerror}; create it: plumbline keys add") from None
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise KeysError(f"{file}: no file of keys: {problem['loc']}: {problem['msg']}") from None


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        now = file.stat()
    except OSError:
        return (0,)
    return now.st_mtime_ns, now.st_ino, now.st_size, now.st_mode


def _locked(file: Path) -> AbstractContextManager[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return durable.locked(file.with_name(f".{file.name}.lock"), 0o600)


def _write(file: Path, known: list[Entry]) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    content = json.dumps([one.model_dump(mode="json") for one in known], indent=1).encode()
    try:
        durable.write_file(partial, content, 0o600)
        os.replace(partial, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
