"""The faults, and how each is injected into a process that is in the state it is meant for.

A victim is found by the beacon that it registered, stopped (SIGSTOP), read, and killed only if what it then
says of itself is the wanted state; otherwise it goes on. Afterwards the process must really be dead.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.chaos.beacon import Seen, give_order, living, look, started_at

State = Mapping[str, int]
Act = Literal["kill", "freeze", "order", "driver", "node", "head", "flip", "again"]
POLL_S = 0.004
DEATH_S = 5.0


def anything(state: State) -> bool:
    return True


def has(*names: str) -> Callable[[State], bool]:
    """All of these are under way."""
    return lambda state: all(state.get(name, 0) > 0 for name in names)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`row`: of the fault matrix; `state`: what the victim must be doing, for people; `met`: as code."""

    name: str
    row: str
    role: str
    state: str
    met: Callable[[State], bool] = anything
    act: Act = "kill"
    order: str = ""
    signals: tuple[int, ...] = ()  # of a driver fault, in order
    share: float = 1.0  # how often it comes in the mixed schedule
    rank: int | None = None  # a certain rank

    @property
    def kills(self) -> bool:
        """Whether a process that worked dies of it (a frozen or wedged one is killed by the fleet)."""
        return self.act in ("kill", "freeze", "again", "driver", "node", "head") or self.order in ("wedge",)


@dataclass(kw_only=True)
class Strike:
    """A fault that happened."""

    fault: str
    role: str
    pid: int
    state: dict[str, int]
    at: float  # monotonic, comparable between processes of one machine
    wall: float
    victims: list[int] = field(default_factory=list[int])  # all pids that died of it
    detected_s: float | None = None
    recovered_s: float | None = None


def strike(run_dir: Path, fault: Fault, chance: random.Random, patience_s: float) -> Strike | None:
    """Inject a fault of a worker process; None when no victim came into the state within `patience_s`."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if (made := attempt(run_dir, fault, chance, until)) is not None:
            return made
        time.sleep(POLL_S)
    return None


def attempt(run_dir: Path, fault: Fault, chance: random.Random, until: float) -> Strike | None:
    """One look at all possible victims. `until`: when an order that nobody carried out is withdrawn."""
    victims = [victim for victim in living(run_dir, fault.role) if fault.rank in (None, victim.index)]
    chance.shuffle(victims)
    for victim in victims:
        done = _order(run_dir, fault, victim, until) if fault.act == "order" else _attack(fault, victim)
        if done is not None:
            return done
    return None


def _order(run_dir: Path, fault: Fault, victim: Seen, until: float) -> Strike | None:
    """A fault that only the process itself can make; it has happened when the process says so."""
    if not fault.met(victim.state):
        return None
    happened = give_order(run_dir, victim.pid, fault.order)
    given = happened.with_suffix("")
    if fault.order == "wedge":
        happened = happened.with_name("wedge-seen.done")
    while fault.order != "slow" and not happened.exists():  # a slow one is slow from now on
        if not victim.alive or time.monotonic() > until:
            given.unlink(missing_ok=True)
            return _struck(fault, victim, victim.state) if happened.exists() else None
        time.sleep(POLL_S)
    return _struck(fault, victim, victim.state)


def _attack(fault: Fault, victim: Seen) -> Strike | None:
    glimpse = look(victim.path)
    if glimpse is None or not fault.met(glimpse.state):
        return None  # without stopping those that are far from it
    if not stopped(victim.pid, victim.born):
        return None
    seen = look(victim.path)  # true as long as it is stopped
    if seen is None or not fault.met(seen.state) or started_at(victim.pid) != victim.born:
        proceed(victim.pid)
        return None
    made = _struck(fault, victim, seen.state)
    if fault.act == "kill":
        os.kill(victim.pid, signal.SIGKILL)
        require_death(victim.pid, victim.born)
    return made


def _struck(fault: Fault, victim: Seen, state: State) -> Strike:
    return Strike(
        fault=fault.name,
        role=victim.role,
        pid=victim.pid,
        state=dict(state),
        at=time.monotonic(),
        wall=time.time(),
        victims=[victim.pid],
    )


def stopped(pid: int, born: int) -> bool:
    """Whether the process is now stopped; False when it ended before."""
    if started_at(pid) != born:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + DEATH_S
        while time.monotonic() < until:
            state = _state_of(pid)
            if state in ("T", "t"):
                return True
            if state in ("", "Z", "X"):
                return False
            time.sleep(0.0005)
    return False


def proceed(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def require_death(pid: int, born: int | None) -> None:
    """Raises AssertionError when the kill did not happen."""
    until = time.monotonic() + DEATH_S
    while started_at(pid) == born:
        assert time.monotonic() < until, f"process {pid} was killed and lives"
        time.sleep(0.001)


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""


def flip_a_byte(folder: Path, chance: random.Random) -> Path | None:
    """In some file of the newest of at least two committed checkpoints."""
    found = sorted(folder.glob("step-[0-9]*"), key=lambda path: int(path.name.split("-")[1].split(".")[0]))
    found = [path for path in found if path.name.split("-")[1].isdigit()]
    if len(found) < 2:
        return None
    with suppress(OSError):
        files = [file for file in sorted(found[-1].iterdir()) if file.stat().st_size]
        file = chance.choice(files)
        content = bytearray(file.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(content))
        return file
    return None
