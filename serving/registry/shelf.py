"""The registry's own copies of checkpoints: what a run's retention removes stays here.

`FOLDER/versions/v-.../` is a committed checkpoint (`actors.checkpoints`) of the files that an engine loads; a
learner's optimizer is left behind. Files of a run's checkpoint are never written again, so they are linked
where the file system can; all else is copied. Every byte is hashed in its new place.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import checkpoints, disk
from actors.checkpoints import MANIFEST, BadCheckpoint, read_manifest
from pipelines import durable
from serving.replicas.integrity import digest_of
from serving.wire import version_id

VERSIONS = "versions"
STAGING = ".staging"
LOCK = ".lock"
LEARNER = "learner/"  # what only training reads


class Vanished(RuntimeError):
    """The checkpoint was removed or changed while it was registered."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A checkpoint in its new place, under a name that nobody looks up yet."""

    path: Path
    digest: str  # SHA-256 of its manifest

    @property
    def id(self) -> str:
        return version_id(self.digest)


def locked(folder: Path) -> AbstractContextManager[None]:
    """One writer of the registry at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    return durable.locked(folder / LOCK, 0o644)


@contextmanager
def staged(folder: Path, source: Path) -> Generator[Staged]:
    """A verified copy of the checkpoint `source`; what is not shelved in the block is removed.

    It takes as long as hashing takes, and holds up nobody. Raises `Vanished`, `BadCheckpoint` and `DiskFull`.
    """
    with _workplace(folder) as aside:
        facts = _facts(source)
        listed: Mapping[str, Any] | None = facts.pop("files", None)
        names = _served_files(source, listed)
        size = 0 if listed else sum((source / name).stat().st_size for name in names)
        with disk.named(folder, size):
            partial = checkpoints.begin(aside, facts["step"], size)
            try:
                for name in names:
                    _bring(source / name, partial / name, link=listed is not None)
            except FileNotFoundError as error:
                raise Vanished(f"{error.filename}: removed while it was registered; try again") from None
            path = checkpoints.commit(aside, facts.pop("step"), facts.pop("attempt"), facts)
        if listed is not None:
            _require_same(source, listed, read_manifest(path)["files"])
        yield Staged(path=path, digest=digest_of(path))


def shelve(folder: Path, found: Staged) -> Path:
    """Give a staged checkpoint its name; for the holder of the lock. One that is there already stays."""
    final = folder / VERSIONS / found.id
    if final.exists():
        try:
            checkpoints.verify(final)
            return final
        except BadCheckpoint:
            os.rename(final, folder / STAGING / f"bad-{found.id}-{secrets.token_hex(4)}")
    final.parent.mkdir(exist_ok=True)
    os.rename(found.path, final)
    durable.sync_folder(final.parent)
    return final


@contextmanager
def _workplace(folder: Path) -> Generator[Path]:
    """A folder of our own; those of processes that are gone are removed."""
    with locked(folder):
        for remains in (folder / STAGING).glob("*"):
            _remove_unless_held(remains)
        aside = folder / STAGING / secrets.token_hex(8)
        aside.mkdir(parents=True)
        handle = os.open(aside, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(handle)


def _remove_unless_held(aside: Path) -> None:
    try:
        handle = os.open(aside, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(aside, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(handle)


def _facts(source: Path) -> dict[str, Any]:
    """What the copy's manifest says of where it came from; equal files of equal origin get equal names."""
    if not (source / MANIFEST).exists():
        return {"step": 0, "attempt": 0}
    manifest = read_manifest(source)
    own = {key: manifest[key] for key in ("step", "attempt", "weight_version") if key in manifest}
    return {**own, "origin": manifest.get("origin", digest_of(source)), "files": manifest["files"]}


def _served_files(source: Path, listed: Mapping[str, Any] | None) -> list[str]:
    """Of a run's checkpoint what its manifest names, of anybody's model the files of its top folder."""
    if listed is not None:
        return [name for name in listed if not name.startswith(LEARNER)]
    return sorted(file.name for file in source.iterdir() if file.is_file() and not file.name.startswith("."))


def _bring(source: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)  # follows links, such as those of a download cache


def _require_same(source: Path, listed: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    for name, entry in got.items():
        if entry != listed[name]:
            raise BadCheckpoint(f"{source / name}: it is not the file that the manifest names")
