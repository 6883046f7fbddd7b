"""Committed checkpoints: written aside, hashed, named by a manifest that comes last, renamed at once.

`run_dir/checkpoints/step-N/` holds a checkpoint and its `manifest.json`. A folder without a manifest that
verifies is no checkpoint, whatever else it holds. On a POSIX file system the rename makes a commit atomic;
on an object store the manifest, written last, does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


class BadCheckpoint(RuntimeError):
    """A checkpoint that does not verify; the message names the file and what is wrong with it."""


class StaleAttempt(RuntimeError):
    """A commit of an attempt that a newer one has replaced."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose every file was verified against its manifest."""

    path: Path
    manifest: Mapping[str, Any]  # format, attempt, step, versions, ledger, files, ...
    rejected: tuple[str, ...] = ()  # newer checkpoints that did not verify, each with the reason

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def root(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def begin(run_dir: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` into; remains of a broken attempt are removed."""
    partial = root(run_dir) / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(run_dir: Path, step: int, attempt: int, facts: Mapping[str, Any]) -> Path:
    """Makes what was written since `begin` the checkpoint of `step`.

    `facts` (JSON-able; "ledger", "versions", ...) enter the manifest. A checkpoint of the same step is
    replaced. Raises `StaleAttempt` when a newer attempt has committed; then nothing changes.
    """
    partial, final = root(run_dir) / f".step-{step}.partial", root(run_dir) / f"step-{step}"
    _refuse_stale(run_dir, attempt)
    files = {name: _entry(partial / name, sync=True) for name in _files(partial)}
    manifest = {**facts, "format": FORMAT, "attempt": attempt, "step": step, "files": files}
    with (partial / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    for folder in {partial, *((partial / name).parent for name in files)}:
        _sync_folder(folder)
    old = root(run_dir) / f".step-{step}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _sync_folder(root(run_dir))
    shutil.rmtree(old, ignore_errors=True)
    return final


def verify(path: Path) -> Checkpoint:
    """Reads every file of a checkpoint. Raises `BadCheckpoint`."""
    manifest = _manifest(path)
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    for name, expected in listed.items():
        file = path / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BadCheckpoint(f"{path / MANIFEST}: it names {name!r}, which lies outside of the checkpoint")
        if not file.is_file():
            raise BadCheckpoint(
                f"{file}: it is missing; the manifest names it with {expected['bytes']} bytes"
            )
        got = _entry(file, sync=False)
        if got["bytes"] != expected["bytes"]:
            raise BadCheckpoint(f"{file}: expected {expected['bytes']} bytes, got {got['bytes']}")
        if got["sha256"] != expected["sha256"]:
            raise BadCheckpoint(
                f"{file}: its SHA-256 is {got['sha256'][:12]}, expected {expected['sha256'][:12]}"
            )
    strangers = sorted(set(_files(path)) - set(listed) - {MANIFEST})
    if strangers:
        raise BadCheckpoint(f"{path / strangers[0]}: the manifest does not name it; remove it")
    return Checkpoint(path=path, manifest=manifest)


def newest_verified(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint of which every file verifies; None when the run has no checkpoint at all.

    Newer ones that do not verify are kept for inspection and listed in `rejected`. Raises `BadCheckpoint`
    when there are checkpoints but none verifies.
    """
    rejected: list[str] = []
    for path in _newest_first(run_dir):
        try:
            found = verify(path)
        except BadCheckpoint as error:
            rejected.append(str(error))
            continue
        return Checkpoint(path=path, manifest=found.manifest, rejected=tuple(rejected))
    if rejected:
        raise BadCheckpoint("no checkpoint of this run verifies: " + "; ".join(rejected))
    return None


def prune(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and never the newest one that verifies."""
    kept, older = _newest_first(run_dir)[:keep], _newest_first(run_dir)[keep:]
    safe = any(_verifies(path) for path in kept)
    for path in older:
        if not safe and _verifies(path):
            safe = True
            continue
        shutil.rmtree(path)


def _verifies(path: Path) -> bool:
    try:
        verify(path)
    except BadCheckpoint:
        return False
    return True


def _newest_first(run_dir: Path) -> list[Path]:
    found = [
        (int(match[1]), path)
        for path in (root(run_dir).iterdir() if root(run_dir).is_dir() else ())
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _refuse_stale(run_dir: Path, attempt: int) -> None:
    for path in _newest_first(run_dir):
        try:
            other = int(_manifest(path)["attempt"])
        except BadCheckpoint:
            continue
        if other > attempt:
            raise StaleAttempt(f"attempt {attempt} may not commit: {path} was committed by attempt {other}")


def _manifest(path: Path) -> Mapping[str, Any]:
    file = path / MANIFEST
    try:
        manifest: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{file}: it is missing, so the checkpoint was never committed") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file}: it cannot be read: {error}") from error
    needed = ("format", "attempt", "step", "files")
    if not isinstance(manifest, dict) or any(key not in manifest for key in needed):
        raise BadCheckpoint(f"{file}: expected an object with {', '.join(needed)}")
    if manifest["format"] != FORMAT:
        raise BadCheckpoint(f"{file}: expected format {FORMAT}, got {manifest['format']}")
    return manifest


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _entry(file: Path, *, sync: bool) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        return {"sha256": digest.hexdigest(), "bytes": stream.tell()}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
