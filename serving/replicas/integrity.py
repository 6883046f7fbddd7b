"""What a version is, byte by byte: the manifest's digest, or that of a folder which has none."""

from __future__ import annotations

import hashlib
from pathlib import Path

from actors.checkpoints import MANIFEST, BadCheckpoint, verify
from serving.wire import Version, version_id


def version_of(folder: Path) -> Version:
    """The checkpoint in a folder. A model of somebody's own has no manifest: its files are hashed."""
    digest = digest_of(folder)
    return Version(id=version_id(digest), path=str(folder), digest=digest)


def require_intact(version: Version) -> None:
    """Raises BadCheckpoint where the files are not those that were registered; without a manifest nobody can
    tell."""
    path = Path(version.path)
    if not (path / MANIFEST).exists():
        return
    if digest_of(path) != version.digest:
        raise BadCheckpoint(f"{version.id}: its manifest is not the one that was registered")
    verify(path)


def digest_of(folder: Path) -> str:
    """SHA-256 of the manifest, which names that of every file; without one, over names and files."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as content:
            one = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{file.relative_to(folder)}\0{one}\n".encode())
    return whole.hexdigest()
