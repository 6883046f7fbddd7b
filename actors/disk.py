"""A full disk, said in one way whoever met it first."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import durable

FULL = (errno.ENOSPC, errno.EDQUOT)
# What libraries that write through C++ or Rust say in place of an error number.
WORDS = (*(f"os error {number}" for number in FULL), *(os.strerror(number) for number in FULL))
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")  # it says that writing failed, never why
PROBE = 1 << 20  # bytes


class DiskFull(RuntimeError):
    """The disk cannot hold what has to be written; the message names path, need and free bytes."""


def require(folder: Path, need: int) -> None:
    """Raises `DiskFull` unless `need` bytes are free where `folder` lies."""
    if need > shutil.disk_usage(folder).free:
        raise _full(folder, need)


@contextmanager
def named(folder: Path, need: int) -> Generator[None]:
    """Raises `DiskFull` for an error in the block that a full disk under `folder` caused; others pass."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if any(_tells(link, folder) for link in _chain(error)):
            raise _full(folder, need) from error
        raise


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _full(folder: Path, need: int) -> DiskFull:
    free = shutil.disk_usage(_existing(folder)).free
    return DiskFull(
        f"{folder}: the disk is full: {need:,} bytes are needed, {free:,} are free. Earlier checkpoints are "
        "untouched; free some space, or lower checkpoint.keep, and go on with --resume"
    )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _tells(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    if any(word in text for word in WORDS):
        return True
    return any(word in text for word in TORCH_WRITER) and _refuses(_existing(folder))


def _refuses(folder: Path) -> bool:
    """Whether the disk takes no further megabyte."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        durable.write_file(probe, bytes(PROBE))
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False
