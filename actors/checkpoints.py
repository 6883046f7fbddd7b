"""Committed checkpoints: written aside, hashed, named by a manifest that comes last, renamed at once.

`run_dir/checkpoints/step-N/` holds a checkpoint and its `manifest.json`. A folder without a manifest that
verifies is no checkpoint, whatever else it holds. On a POSIX file system the rename makes a commit atomic;
on an object store (`actors.mirror`) the manifest, written last, does. Hidden folders beside them are commits
under way (`.step-N.partial`), a checkpoint while another of its step takes its place (`.step-N.replaced`)
and one being removed (`.step-N.removed`); `bad-step-N` is one that did not verify, kept for inspection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import disk
from actors.disk import DiskFull
from pipelines import durable

__all__ = ["BadCheckpoint", "Checkpoint", "DiskFull", "StaleAttempt"]

MANIFEST = "manifest.json"
FORMAT = 2


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


def partial_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is committed."""
    return _aside(run_dir, step, "partial")


def begin(run_dir: Path, step: int, need: int = 0) -> Path:
    """An empty folder to write the checkpoint of `step` into; remains of broken attempts are removed.

    `need`: bytes it will take, where there is no earlier checkpoint to tell. Raises `DiskFull`.
    """
    root(run_dir).mkdir(parents=True, exist_ok=True)
    for remains in root(run_dir).glob(".step-*.partial"):
        shutil.rmtree(remains)
    disk.require(root(run_dir), usual_size(run_dir) or need)
    partial = partial_of(run_dir, step)
    partial.mkdir()
    return partial


def usual_size(run_dir: Path) -> int:
    """Bytes of the newest checkpoint, 0 when there is none."""
    for path in _newest_first(run_dir):
        try:
            return sum(int(entry["bytes"]) for entry in read_manifest(path)["files"].values())
        except BadCheckpoint:
            continue
    return 0


def commit(run_dir: Path, step: int, attempt: int, facts: Mapping[str, Any]) -> Path:
    """Makes what was written since `begin` the checkpoint of `step`.

    `facts` (JSON-able; "ledger", "versions", ...) enter the manifest. A checkpoint of the same step is
    replaced; one that does not verify is kept as `bad-step-N`. Raises `StaleAttempt` when a newer attempt has
    committed; then nothing changes.
    """
    partial, final = partial_of(run_dir, step), root(run_dir) / f"step-{step}"
    _refuse_stale(run_dir, attempt)
    files = {name: _entry(partial / name, sync=True) for name in _files(partial)}
    manifest = {**facts, "format": FORMAT, "attempt": attempt, "step": step, "files": files}
    durable.write_file(partial / MANIFEST, _sealed(manifest), 0o644)
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        durable.sync_folder(folder)
    if final.exists():
        _put_aside(run_dir, step)
    os.rename(partial, final)
    durable.sync_folder(root(run_dir))
    _remove(run_dir, _aside(run_dir, step, "replaced"))
    return final


def _put_aside(run_dir: Path, step: int) -> None:
    """Make way for another checkpoint of a step. Between two renames only the name aside remains."""
    final, aside = root(run_dir) / f"step-{step}", _aside(run_dir, step, "replaced")
    if not _verifies(final):
        keep_bad(run_dir, final)
        return
    _remove(run_dir, aside)
    os.rename(final, aside)


def keep_bad(run_dir: Path, path: Path) -> None:
    """Give a checkpoint that does not verify a name under which nothing takes it for one."""
    bad = path.with_name(f"bad-{path.name}")
    _remove(run_dir, bad)
    os.rename(path, bad)


def repair(run_dir: Path) -> None:
    """For the run folder's owner: finish what a commit that was cut began. Its `.partial` stays."""
    for aside in sorted(root(run_dir).glob(".step-*.replaced")):
        final = root(run_dir) / aside.name.removeprefix(".").removesuffix(".replaced")
        if final.exists() and _verifies(final):
            _remove(run_dir, aside)
            continue
        if final.exists():
            keep_bad(run_dir, final)
        os.rename(aside, final)
    for remains in root(run_dir).glob(".*.removed"):
        shutil.rmtree(remains)


def recover(run_dir: Path, mirror: str | None = None) -> Checkpoint | None:
    """For the run folder's owner: finish what a commit that was cut began, then the newest that verifies.

    `mirror` (`checkpoint.mirror`) is asked as well; a newer one there is fetched and verified. None where the
    run has no checkpoint. Raises `BadCheckpoint` when there are checkpoints but none verifies. A recovery
    that is cut can be repeated.
    """
    repair(run_dir)
    if mirror is not None:
        from actors.mirror import fetch_newer

        return fetch_newer(run_dir, mirror)
    return newest_verified(run_dir)


def verify(path: Path) -> Checkpoint:
    """Reads every file of a checkpoint. Raises `BadCheckpoint`."""
    manifest = read_manifest(path)
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    for name, expected in listed.items():
        file = path / name
        require_inside(path, name)
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


def require_inside(path: Path, name: str) -> None:
    """Raises `BadCheckpoint` where a manifest names a file that is not the checkpoint's own."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise BadCheckpoint(f"{path / MANIFEST}: it names {name!r}, which lies outside of the checkpoint")


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


def prune(run_dir: Path, keep: int, spare: Collection[Path] = ()) -> None:
    """Removes all but the newest `keep` checkpoints and those to spare, never the newest that verifies."""
    kept, older = _newest_first(run_dir)[:keep], _newest_first(run_dir)[keep:]
    safe = any(_verifies(path) for path in kept)
    for path in older:
        if not safe and _verifies(path):
            safe = True
        elif path not in spare:
            _remove(run_dir, path)


def _remove(run_dir: Path, path: Path) -> None:
    """Away at once under its own name, then from the disk."""
    if path.exists():
        removed = root(run_dir) / f".{path.name.removeprefix('.')}.removed"
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(path, removed)
        shutil.rmtree(removed)


def _verifies(path: Path) -> bool:
    try:
        verify(path)
    except BadCheckpoint:
        return False
    return True


def _aside(run_dir: Path, step: int, what: str) -> Path:
    return root(run_dir) / f".step-{step}.{what}"


def _newest_first(run_dir: Path) -> list[Path]:
    """Checkpoints by step; one that was put aside counts while nothing has taken its place."""
    found: dict[int, Path] = {}
    for path in sorted(root(run_dir).iterdir()) if root(run_dir).is_dir() else ():  # hidden ones come first
        if match := re.fullmatch(r"step-(\d+)|\.step-(\d+)\.replaced", path.name):
            found[int(match[1] or match[2])] = path
    return [path for _, path in sorted(found.items(), reverse=True)]


def _refuse_stale(run_dir: Path, attempt: int) -> None:
    for path in _newest_first(run_dir):
        try:
            other = int(read_manifest(path)["attempt"])
        except BadCheckpoint:
            continue
        if other > attempt:
            raise StaleAttempt(f"attempt {attempt} may not commit: {path} was committed by attempt {other}")


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's only spelling, with the SHA-256 of everything else in it."""
    plain = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(_spelled(plain)).hexdigest()
    return _spelled({**plain, "sha256": digest})


def _spelled(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of itself, its files not looked at. Raises `BadCheckpoint`."""
    file = path / MANIFEST
    try:
        content = file.read_bytes()
        manifest: Any = json.loads(content)
    except FileNotFoundError:
        raise BadCheckpoint(f"{file}: it is missing, so the checkpoint was never committed") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file}: it cannot be read: {error}") from error
    needed = ("format", "attempt", "step", "files")
    if not isinstance(manifest, dict) or any(key not in manifest for key in needed):
        raise BadCheckpoint(f"{file}: expected an object with {', '.join(needed)}")
    if manifest["format"] != FORMAT:
        raise BadCheckpoint(f"{file}: expected format {FORMAT}, got {manifest['format']}")
    if _sealed(manifest) != content:
        raise BadCheckpoint(f"{file}: its SHA-256 is not the one it names; it was changed after the commit")
    return manifest


def weights_digest(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model: the same for its copies, whatever lies beside them."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        whole.update(f"{file.name}\0{_entry(file, sync=False)['sha256']}\n".encode())
    return whole.hexdigest()


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
