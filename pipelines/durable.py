"""Files that survive the end of their writer.

Two ends are told apart. After a *crash* (the process is killed, at any instruction) the system goes on and
keeps all that was written. After a *power cut* only what was synced is sure to be there: the content of a
file by its own sync, its name by one of its folder. Each function says what is left after either. Disks that
only pretend to sync are beyond all of them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_BLOCK: Final = 1 << 16  # bytes


@contextmanager
def locked(file: Path, mode: int = 0o666) -> Generator[None]:
    """Hold the lock `file` for the time of the block; waits for other holders, threads and processes alike.

    On all machines whose file systems share locks. The lock is the operating system's (flock), so it is gone
    with its holder however that one ends; the empty file stays. The folder has to be there.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, mode)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # unlocks


@contextmanager
def swapped(file: Path) -> Generator[Path]:
    """A place to write `file` anew; it takes the file's place when the block ends, not when it raises.

    For one writer, and for readers that may never see half: a crash leaves the old file or the new one, and
    beside it a `.partial`, which the next writing overwrites. Nothing is synced: a power cut may leave an
    empty file in place of both.
    """
    partial = file.with_suffix(".partial")
    yield partial
    os.replace(partial, file)


def replace_file(file: Path, content: bytes) -> None:
    """The file is what it was or what it is to be, after a crash and after a power cut; its folder is made.

    A writing that is cut leaves `.NAME.PID` beside it. Processes may replace one file at once: the last wins.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    write_file(partial, content)
    os.replace(partial, file)
    sync_folder(file.parent)


def write_file(file: Path, content: bytes, mode: int = 0o666) -> None:
    """Write and sync the content, for a name that nobody looks up yet: a crash may leave half of it.

    When it returns, the content survives a power cut; the name does so after `sync_folder`. `mode` counts for
    a new file.
    """
    left = memoryview(content)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make new names, renames and removals in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append(file: Path, lines: bytes, mode: int = 0o666) -> None:
    """Add whole lines, for a file's one writer at a time; a torn last line never happened and is cut off.

    When it returns, they survive a power cut. When it raises OSError, they are taken back, as far as the disk
    still obeys. A crash or a power cut meanwhile leaves any part of them: readers have to leave out a last
    line without its newline. `mode` counts for a new file.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, mode)
    try:
        good = _mended(handle)
        try:
            written = os.pwrite(handle, lines, good)
            if written != len(lines):
                raise OSError(f"{written} of {len(lines)} bytes could be written")
            os.fsync(handle)
            sync_folder(file.parent)
        except OSError:
            os.ftruncate(handle, good)
            raise
    finally:
        os.close(handle)


def mend(file: Path) -> None:
    """Cut off what a crash left without its newline, or the next line would be glued to it. Not synced."""
    handle = os.open(file, os.O_RDWR)
    try:
        _mended(handle)
    finally:
        os.close(handle)


def _mended(handle: int) -> int:
    """Cut a torn last line off; bytes that are left."""
    size = good = os.fstat(handle).st_size
    while good:
        start = max(0, good - _BLOCK)
        newline = os.pread(handle, good - start, start).rfind(b"\n")
        if newline >= 0:
            good = start + newline + 1
            break
        good = start
    if good < size:
        os.ftruncate(handle, good)
    return good
