"""What a worker is doing right now, in a small shared file, so that a fault meets the state it is meant for.

The worker writes; the injector stops the process (SIGSTOP), reads, and either kills it or lets it go on. What
is read of a stopped process is true until it continues, so the state at the kill is asserted, not guessed.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 4096
FOLDER = "beacons"
ORDERS = "orders"
STACKS = "stacks"


def started_at(pid: int) -> int | None:
    """Clock ticks from boot to the start of a living process; with the pid it names one process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Beacon:
    """One per worker process. `role` and `index` as the fleet or the learner calls it."""

    def __init__(self, run_dir: Path, role: str, index: int, **facts: Any) -> None:
        self._state: Counter[str] = Counter()
        pid = os.getpid()
        born = started_at(pid)
        self._facts = {"role": role, "index": index, "pid": pid, "born": born, "node": _node(), **facts}
        path = run_dir / FOLDER / f"{role}-{index}-{pid}-{born}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".new")
        with partial.open("wb") as file:
            file.truncate(SIZE)
        with partial.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        self._order = run_dir / ORDERS / str(pid)
        stacks = run_dir / STACKS
        stacks.mkdir(exist_ok=True)
        self._stacks = (stacks / path.stem).open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)  # for the watchdog
        self._write()
        partial.rename(path)

    def set(self, name: str, value: int) -> None:
        if self._state[name] != value:
            self._state[name] = value
            self._write()

    def count(self, name: str) -> int:
        return self._state[name]

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Inside, `name` counts one more."""
        self.set(name, self._state[name] + 1)
        try:
            yield
        finally:
            self.set(name, self._state[name] - 1)

    def order(self, name: str) -> bool:
        """Whether the injector has ordered `name` of this process: a fault that only the process can make."""
        return (self._order / name).exists()

    def done(self, name: str) -> None:
        """The order was carried out; the file that says so stays."""
        (self._order / f"{name}.done").touch()
        (self._order / name).unlink(missing_ok=True)

    def _write(self) -> None:
        state = {name: count for name, count in self._state.items() if count}
        text = json.dumps({**self._facts, "state": state, "at": time.monotonic()}).encode()
        self._map[:SIZE] = text.ljust(SIZE - 1) + b"\n"


def _node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A worker as its beacon tells. The process lives unless it ended since."""

    role: str
    index: int
    pid: int
    born: int
    node: str
    state: Mapping[str, int]
    attempt: int = 0
    path: Path

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.born


def look(path: Path) -> Seen | None:
    """None for a beacon that cannot be read at the moment (caught in the middle of a write)."""
    with suppress(OSError, ValueError, KeyError):
        facts = json.loads(path.read_bytes())
        facts.pop("at")
        return Seen(path=path, **facts)
    return None


def living(run_dir: Path, role: str | None = None) -> list[Seen]:
    """Workers that live, by role and index; beacons of dead ones are moved aside."""
    found: list[Seen] = []
    for path in sorted((run_dir / FOLDER).glob(f"{role or '*'}-*.json")):
        seen = look(path)
        if seen is not None and not seen.alive:
            path.rename(path.with_suffix(".dead"))
        elif seen is not None:
            found.append(seen)
    return found


def give_order(run_dir: Path, pid: int, name: str) -> Path:
    """Orders a fault of a process; returns the file that appears when it has happened."""
    folder = run_dir / ORDERS / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / f"{name}.done"
