"""One living owner per run folder: two drivers that write the same checkpoints and journals corrupt both."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pipelines.settings_errors import SettingsError

FILE = ".owner"


@contextmanager
def owned(run_dir: Path) -> Generator[None]:
    """Hold `run_dir` for the time of the block; the folder is made if there is none.

    The lock is the operating system's (flock), so it is gone with its owner however that one ends; the file
    stays and says who owned the folder last. Raises SettingsError, naming host and process, while another
    owner lives.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / FILE
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(_refusal(run_dir, error)) from None
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat()}
        text = json.dumps(owner).encode() + b"\n"
        os.pwrite(handle, text, 0)
        os.ftruncate(handle, len(text))
        yield
    finally:
        os.close(handle)  # unlocks


def owner(run_dir: Path) -> dict[str, Any] | None:
    """Who owns the folder, or owned it last: host, pid, since (UTC). None where nobody ever did."""
    try:
        found: Any = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _refusal(run_dir: Path, error: OSError) -> str:
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        return (
            f"{run_dir / FILE}: cannot be locked ({error.strerror}); put `output` on a disk with file locks"
        )
    other = owner(run_dir) or {}
    return (
        f"run folder {run_dir}: process {other.get('pid', 'unknown')} on host {other.get('host', 'unknown')} "
        f"has owned it since {other.get('since', 'an unknown time')} and still lives; wait for it, end it, "
        "or choose another `name`"
    )
