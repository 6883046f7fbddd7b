"""A run's folder as its control panel: `status.json`, which the run writes, and `control/fleet.json`, which a
user's command writes. Both are replaced as a whole, so a reader never sees half of one. Without Ray.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.scaling import ROLES, Role
from pipelines.settings_errors import SettingsError

STATUS = "status.json"
REQUEST = "control/fleet.json"
SILENT_S = 15.0  # a run that writes about once a second and has not for so long is stuck or gone
ANSWER_S = 10.0  # that a run gets to take a request up
ENDED = ("ended", "finished", "failed", "interrupted", "over")  # phases of a run that is over
MOST = 10_000  # members of a pool that one may ask for


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user wants pools of these sizes. `problem`: why it cannot be read."""

    id: str
    sizes: Mapping[Role, int] = field(default_factory=dict[Role, int])
    problem: str | None = None


def write_status(run_dir: Path, status: Mapping[str, Any]) -> None:
    """Replace the status; adds when, where and by which process it was written."""
    here = {"at": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    _replace(run_dir / STATUS, {**here, **status})


def read_status(run_dir: Path) -> dict[str, Any]:
    """The newest status of a run. Raises SettingsError when there is none."""
    path = run_dir / STATUS
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        if not ({"at", "host", "pid", "fleet"} <= set(value) and {"pools", "members"} <= set(value["fleet"])):
            raise ValueError("it is not a run's status")
    except FileNotFoundError:
        missing = f"holds no {STATUS}: the run has not started yet" if run_dir.is_dir() else "no such folder"
        raise SettingsError(f"{run_dir}: {missing}; give the folder of a run") from None
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    return value


def write_request(run_dir: Path, sizes: Mapping[Role, int]) -> str:
    """Ask the run for pools of these sizes; gives the number of the request.

    Raises SettingsError for sizes that make no sense, and for a run that is not live.
    """
    for role, size in sizes.items():
        if not 1 <= size <= MOST:
            raise SettingsError(f"{role}s: expected 1 to {MOST}, got {size}")
    if not sizes:
        raise SettingsError("nothing is asked for: give --rollouts, --scorers or --perturbers")
    if (trouble := silence(read_status(run_dir))) is not None:
        raise SettingsError(f"{run_dir}: {trouble}; its fleet cannot be changed")
    name = uuid.uuid4().hex
    _replace(run_dir / REQUEST, {"id": name, "at": time.time(), "sizes": dict(sizes)})
    return name


def read_request(run_dir: Path) -> Request | None:
    """The newest request, None without one. What cannot be read is a request with a `problem`."""
    path = run_dir / REQUEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Request(id=str(error), problem=f"{path}: cannot be read: {error}")
    try:
        value: Any = json.loads(text)
        asked: Any = value["sizes"]
        sizes: dict[Role, int] = {role: int(asked[role]) for role in ROLES if role in asked}
        if not sizes or not all(1 <= size <= MOST for size in sizes.values()):
            raise ValueError(f"expected sizes from 1 to {MOST}, got {asked}")
        return Request(id=str(value["id"]), sizes=sizes)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return Request(id=text, problem=f"{path}: not a request: {type(error).__name__}: {error}")


def answer(status: Mapping[str, Any], request: str) -> str | None:
    """What the run says about a request, None before it has seen it."""
    got: Any = status.get("request")
    return str(got["said"]) if got and got["id"] == request else None


def await_answer(run_dir: Path, request: str, timeout_s: float = ANSWER_S) -> str | None:
    """Wait for what the run says about a request; None when it says nothing for so long."""
    until = time.monotonic() + timeout_s
    while (said := answer(read_status(run_dir), request)) is None and time.monotonic() < until:
        time.sleep(0.1)
    return said


def silence(status: Mapping[str, Any], now: float | None = None) -> str | None:
    """Why a status tells of the past: the run is over, its process is gone, or it does not write any more."""
    phase = status.get("phase")
    if phase in ENDED:
        return f"the run is over ({phase})"
    if status.get("host") == socket.gethostname() and not _lives(int(status["pid"])):
        return f"the run's process {status['pid']} is gone"
    age = (time.time() if now is None else now) - float(status["at"])
    return f"the run has not written for {age:.0f} s" if age > SILENT_S else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _replace(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, default=str), encoding="utf-8")
    os.replace(fresh, path)
