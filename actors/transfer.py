"""How the bytes of a weight version travel: in buckets, each by itself, through the object store or by disk.

`actors/collective.py` is the third way, which falls back on these.

A taker gets a `Shipment`, which is small, and pulls the buckets one after the other. It loads nothing before
all of them are there, so that a sender that dies half-way leaves it as it was. Free of torch and Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import durable
from pipelines.loop import RoleFailed
from pipelines.types import WeightVersion

Arrays = Mapping[str, NDArray[Any]]
WEIGHT_TRANSFER = "plumbline"  # what vLLM knows `actors.engine_extension.FromMemory` by
KEPT = 2  # versions that are held: what a taker reads may be followed by one more before it is gone
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Where the bytes of a version are: behind references, one per bucket, or in a folder."""

    buckets: tuple[Any, ...] = ()  # references to name -> array, or, without Ray, the arrays themselves
    folder: str | None = None
    call: Any = None  # to a broadcast of the same bytes (`actors.collective.Call`), to be tried first


def in_buckets(tensors: Iterable[tuple[str, NDArray[Any]]], most: int) -> Iterator[dict[str, NDArray[Any]]]:
    """The tensors in order, in groups of at most `most` bytes; one that is larger makes a group of its own.

    Nothing is read ahead, so that whoever sends each group at once never holds more than one.
    """
    bucket: dict[str, NDArray[Any]] = {}
    size = 0
    for name, array in tensors:
        if bucket and size + array.nbytes > most:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = array
        size += array.nbytes
    if bucket:
        yield bucket


async def receive(what: str, shipment: Shipment, timeout_s: float) -> dict[str, Any]:
    """All tensors of a shipment; `timeout_s` is the deadline of each bucket.

    Raises RoleFailed "transfer_cut", which names the bucket, when one did not arrive; the caller holds what
    it held, and may ask the publisher again.
    """
    received: dict[str, Any] = {}
    parts = [*shipment.buckets] if shipment.folder is None else _files(Path(shipment.folder))
    for index, part in enumerate(parts):
        try:
            received |= await asyncio.wait_for(_arrived(part), timeout_s)
        except Exception as error:
            cause = f"none in {timeout_s:g} s" if isinstance(error, TimeoutError) else f"{error!r:.300}"
            detail = f"{what}: bucket {index + 1} of {len(parts)} did not arrive: {cause}"
            raise RoleFailed("transfer_cut", "publisher", detail) from error
    return received


async def _arrived(part: Any) -> Mapping[str, Any]:
    if isinstance(part, Path):
        return await asyncio.to_thread(_read, part)
    return await part if inspect.isawaitable(part) else part


# -- by disk -----------------------------------------------------------------------------------------------


class Folders:
    """Versions under `root`, each a folder that appears whole or not at all; the last `KEPT` are kept."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0

    def _partial(self, number: int) -> Path:
        return self._root / f".version-{number}.partial"

    def hold(self, number: int, tensors: Arrays) -> None:
        """Write the next bucket of a version that nobody sees yet."""
        from safetensors.numpy import save

        folder = self._partial(number)
        if not folder.exists() or not self._count:
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that died here
            folder.mkdir(parents=True)
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        durable.write_file(folder / f"bucket-{self._count:05d}.safetensors", save(contiguous))
        self._count += 1

    def publish(self, version: WeightVersion) -> str:
        """Make a version visible; gives its folder."""
        partial, folder = self._partial(version.number), self._root / f"version-{version.number}"
        told = {"version": version.number, "attempt": version.attempt, "step": version.step}
        tensors = {name: asdict(digest) for name, digest in version.manifest.items()}
        whole = {**told, "digest": version.digest, "buckets": self._count, "tensors": tensors}
        durable.write_file(partial / MANIFEST, json.dumps(whole, indent=1).encode())
        if folder.exists():  # of an earlier attempt
            shutil.rmtree(folder)
        os.replace(partial, folder)
        durable.sync_folder(self._root)
        self._count = 0
        for older in self._root.glob("version-*"):
            if int(older.name.removeprefix("version-")) <= version.number - KEPT:
                shutil.rmtree(older, ignore_errors=True)
        return str(folder)


def _files(folder: Path) -> list[Path]:
    """As many buckets as the manifest says; one that is missing fails when it is read."""
    try:
        count: int = json.loads((folder / MANIFEST).read_bytes())["buckets"]
    except (OSError, ValueError, KeyError) as error:
        detail = f"{folder} holds no weight version: {error!r:.300}"
        raise RoleFailed("transfer_cut", "publisher", detail) from error
    return [folder / f"bucket-{index:05d}.safetensors" for index in range(count)]


def _read(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:  # it does not say which file
        raise ValueError(f"{path}: {error}") from error
