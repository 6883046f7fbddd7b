"""A second place for checkpoints: a folder, or any fsspec URL, that outlives the machine of the run.

`MIRROR/<run>/checkpoints/step-N/` has the layout of a run folder. Its manifest is written last and removed
first, so what has a manifest was whole when it was copied; `actors.checkpoints` verifies what comes back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors import checkpoints, disk
from actors.checkpoints import MANIFEST, BadCheckpoint, Checkpoint
from pipelines import durable
from pipelines.settings_errors import SettingsError

CHUNK = 1 << 22  # bytes
STATUS = "mirror.json"


class Mirror:
    """The checkpoints of one run in another place. Raises SettingsError for a URL that cannot be used."""

    def __init__(self, url: str, run: str) -> None:
        import fsspec

        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(f"checkpoint.mirror: {url!r} cannot be used: {error}") from None
        self._fs, base = found
        self.root = f"{base.rstrip('/')}/{run}/checkpoints"

    def steps(self) -> list[int]:
        """Steps that have a manifest, newest first."""
        return [step for step in self._folders() if self._fs.exists(f"{self.root}/step-{step}/{MANIFEST}")]

    def push(self, checkpoint: Path) -> None:
        """Copy a committed checkpoint. Raises BadCheckpoint for a file that is not what was committed."""
        manifest: Mapping[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
        target = f"{self.root}/step-{manifest['step']}"
        self._remove(target)
        for name, entry in manifest["files"].items():
            if self._send(checkpoint / name, f"{target}/{name}") != entry["sha256"]:
                raise BadCheckpoint(f"{checkpoint / name}: it changed after the commit; it is not mirrored")
        self._send(checkpoint / MANIFEST, f"{target}/{MANIFEST}")

    def pull(self, step: int, folder: Path, attempt: int) -> None:
        """Fetch a checkpoint of this or a later attempt into a folder; what comes is not verified yet."""
        source = f"{self.root}/step-{step}"
        content: bytes = self._fs.cat_file(f"{source}/{MANIFEST}")
        (folder / MANIFEST).write_bytes(content)
        manifest = checkpoints.read_manifest(folder)
        if manifest["attempt"] < attempt:
            raise BadCheckpoint(f"{source}: attempt {manifest['attempt']} was given up by attempt {attempt}")
        listed = manifest["files"]
        disk.require(folder, sum(int(entry["bytes"]) for entry in listed.values()))
        for name in listed:
            checkpoints.require_inside(folder, name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._fs.open(f"{source}/{name}", "rb") as read, (folder / name).open("wb") as write:
                    shutil.copyfileobj(read, write, CHUNK)
            except FileNotFoundError:
                raise BadCheckpoint(f"{source}/{name}: it is missing") from None

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`, and what an older copy that was cut left."""
        kept = self.steps()[:keep]
        for step in self._folders():
            if kept and step not in kept and step < kept[0]:
                self._remove(f"{self.root}/step-{step}")

    def _folders(self) -> list[int]:
        self._fs.invalidate_cache()
        try:
            names: list[str] = self._fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        found = [re.search(r"/step-(\d+)/?$", name) for name in names]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _remove(self, folder: str) -> None:
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)

    def _send(self, source: Path, target: str) -> str:
        """SHA-256 of what was sent."""
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        digest = hashlib.sha256()
        with source.open("rb") as read, self._fs.open(target, "wb") as write:
            while chunk := read.read(CHUNK):
                digest.update(chunk)
                write.write(chunk)
        return digest.hexdigest()


class Mirroring:
    """Copies commits beside the training, always the newest; failures are counted and never raised.

    `mirror.json` in the run folder says how far it is: step, failures, error (of the newest try, or null).
    """

    def __init__(self, mirror: Mirror, run_dir: Path, keep: int) -> None:
        self._mirror, self._run_dir, self._keep = mirror, run_dir, keep
        self.step, self.failures, self.error = -1, 0, ""
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._copying: Path | None = None
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    @property
    def held(self) -> set[Path]:
        """Checkpoints that must not be removed yet."""
        with self._changed:
            return {path for path in (self._waiting, self._copying) if path is not None}

    def offer(self, checkpoint: Path) -> None:
        """Copy this one next, in place of one that still waits."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify_all()

    def finish(self, deadline_s: float) -> None:
        """Wait for the copy under way, as long as the deadline allows; then say what is missing."""
        until = time.monotonic() + deadline_s
        with self._changed:
            while self._waiting or self._copying:
                left = until - time.monotonic()
                if left <= 0:
                    self._note(TimeoutError(f"the last copy took longer than {deadline_s:.0f} s"))
                    return
                self._changed.wait(left)

    def metrics(self) -> dict[str, float]:
        return {"mirror/step": float(self.step), "mirror/failures": float(self.failures)}

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    self._changed.wait()
                path, self._waiting = self._waiting, None
                self._copying = path
            failure: Exception | None = None
            try:
                self._mirror.push(path)
                self._mirror.prune(self._keep)
            except Exception as error:  # whatever a file system of somebody else raises
                failure = error
            with self._changed:
                self._copying = None
                if failure is None:
                    self.step, self.error = int(path.name.removeprefix("step-")), ""
                self._note(failure)
                self._changed.notify_all()

    def _note(self, failure: Exception | None) -> None:
        if failure is not None:
            self.failures, self.error = self.failures + 1, f"{type(failure).__name__}: {failure}"
            logging.getLogger(__name__).warning("checkpoint.mirror: not copied: %s", self.error)
        status = {"step": self.step, "failures": self.failures, "error": self.error or None}
        with durable.swapped(self._run_dir / STATUS) as partial:
            partial.write_text(json.dumps(status))


def fetch_newer(run_dir: Path, url: str) -> Checkpoint | None:
    """The newest that verifies, here or in the mirror; see `checkpoints.recover`.

    A mirror that does not answer is an error only where nothing here verifies.
    """
    here, trouble = None, list[str]()
    try:
        here = checkpoints.newest_verified(run_dir)
    except BadCheckpoint as error:
        trouble.append(str(error))
    rejected = list(here.rejected if here else ())
    try:
        mirror = Mirror(url, run_dir.name)
        steps = [step for step in mirror.steps() if here is None or step > here.step]
        for step in steps:
            try:
                return _fetch(run_dir, mirror, step, here, tuple(rejected))
            except BadCheckpoint as error:
                rejected.append(f"in the mirror: {error}")
    except disk.DiskFull:
        raise
    except Exception as error:  # whatever a file system of somebody else raises
        rejected.append(f"checkpoint.mirror {url!r} cannot be read: {type(error).__name__}: {error}")
    if here is not None:
        return Checkpoint(path=here.path, manifest=here.manifest, rejected=tuple(rejected))
    if trouble or rejected:
        raise BadCheckpoint("; ".join([*trouble, *rejected]))
    return None


def _fetch(
    run_dir: Path, mirror: Mirror, step: int, here: Checkpoint | None, rejected: tuple[str, ...]
) -> Checkpoint:
    """Installs a mirrored checkpoint; one of the same step here, which did not verify, is kept aside."""
    partial = checkpoints.begin(run_dir, step)
    mirror.pull(step, partial, int(here.manifest["attempt"]) if here else 0)
    checkpoints.verify(partial)
    final = checkpoints.root(run_dir) / f"step-{step}"
    if final.exists():
        checkpoints.keep_bad(run_dir, final)
    os.rename(partial, final)
    found = checkpoints.verify(final)
    return Checkpoint(path=final, manifest=found.manifest, rejected=rejected)
