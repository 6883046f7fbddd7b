"""An adapter's files, copied from a folder or any fsspec URL into a cache where content names the folder.

Only the few names that an adapter has are asked for, whatever else lies beside them: a pickle is never read.
An engine loads what was copied here and checked, so a source that changes later changes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors import disk
from actors.adapter_format import BASE
from actors.checkpoints import MANIFEST, BadCheckpoint, newest_verified, verify
from serving.replicas.integrity import digest_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
INSIDE = "adapter"  # where a checkpoint of a LoRA run has it
#: Bytes, by name: what is read of a source.
LARGEST: Mapping[str, int] = {CONFIG: 2**20, BASE: 2**10, WEIGHTS: 8 * 2**30}
CHUNK = 2**22


class BadAdapter(ValueError):
    """It cannot be served; the message says what is wrong, not which adapter it is."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plumbline" / "adapters"


def absolute(source: str) -> str:
    """The source as every process of the server finds it: their current folders differ."""
    return source if "://" in source or "::" in source else str(Path(source).expanduser().absolute())


def fetch(source: str, digest: str | None = None) -> tuple[Path, str]:
    """The cached copy of an adapter, and its digest (SHA-256 over names and files).

    `source`: a folder or URL of an adapter in PEFT's layout, or of a checkpoint that has one inside; a local
    run stands for its newest checkpoint. With `digest` a copy that is in the cache and whole will do. Raises
    `BadAdapter` where there is none, and where it is not the one of `digest`.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if digest is not None and _holds(cache / digest, digest):
        return cache / digest, digest
    partial = Path(tempfile.mkdtemp(prefix=".fetched-", dir=cache))
    try:
        _copy(source, partial)
        found = digest_of(partial)
        if digest is not None and found != digest:
            raise BadAdapter(
                f"its files changed since the server started: their SHA-256 is {found[:12]}, expected "
                f"{digest[:12]}; restart the server to serve what is there now"
            )
        return _settle(partial, cache / found, found), found
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(partial: Path, final: Path, digest: str) -> Path:
    """Give a whole copy its name. Others may do the same at this moment, with equal content."""
    for _ in range(2):
        if _holds(final, digest):
            return final
        shutil.rmtree(final, ignore_errors=True)  # cut or damaged
        try:
            os.rename(partial, final)
            return final
        except OSError:
            continue
    raise BadAdapter(f"{final}: it cannot be written; remove it")


def _holds(folder: Path, digest: str) -> bool:
    return folder.is_dir() and digest_of(folder) == digest


def _copy(source: str, folder: Path) -> None:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(source)
        files.invalidate_cache()
        root = _place(files, root.rstrip("/"))
        for name in (CONFIG, WEIGHTS, BASE):
            if name != BASE or files.isfile(f"{root}/{name}"):  # adapters from elsewhere have none
                _copy_file(files, f"{root}/{name}", folder / name, LARGEST[name])
    except BadAdapter:
        raise
    except (BadCheckpoint, disk.DiskFull) as error:
        raise BadAdapter(str(error)) from None
    except Exception as error:  # whatever a file system of somebody else raises
        raise BadAdapter(f"it cannot be read: {type(error).__name__}: {error}") from error


def _place(files: Any, root: str) -> str:
    """The folder of the adapter itself. What belongs to a checkpoint on this machine must verify."""
    local = Path(root) if "file" in _protocols(files) else None
    if local is not None and (local / "checkpoints").is_dir():
        newest = newest_verified(local)
        if newest is None:
            raise BadAdapter("the run ended before its first checkpoint")
        root, local = str(newest.path), None
    if not files.isfile(f"{root}/{CONFIG}"):
        root = f"{root}/{INSIDE}"
    if not files.isfile(f"{root}/{CONFIG}"):
        raise BadAdapter(
            f"there is no {CONFIG}; give the folder or URL of a PEFT adapter, or a checkpoint of a run that "
            "trains one (a run that merges its adapters has none: serve its checkpoint as a model)"
        )
    if not files.isfile(f"{root}/{WEIGHTS}"):
        pickled = next((name for name in PICKLES if files.exists(f"{root}/{name}")), None)
        why = f"{pickled} can run code when it is loaded; save it as safetensors" if pickled else "no weights"
        raise BadAdapter(f"there is no {WEIGHTS}: {why}")
    whole = Path(root).parent if local is not None and root.endswith(f"/{INSIDE}") else None
    if whole is not None and (whole / MANIFEST).is_file():
        verify(whole)
    return root


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _copy_file(files: Any, path: str, target: Path, largest: int) -> None:
    """Raises `BadAdapter` above `largest` bytes, whatever the source says of its size."""
    size = files.size(path)
    if size is not None and size <= largest:
        disk.require(target.parent, size)
    copied = 0
    with files.open(path, "rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK):
            copied += len(chunk)
            if copied > largest or (size or 0) > largest:
                raise BadAdapter(f"{target.name}: it is larger than the {largest:,} bytes that one may have")
            write.write(chunk)
