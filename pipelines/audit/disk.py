"""I6 durable and I7 clean: what the run left on disk and among the processes of this machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipelines.audit.evidence import MANIFEST, Evidence, Outcome, some

_LEFT: Final = ("*.partial", "*.replaced", "*.removed", ".*.json.*")
_GRACE_S: Final = 5.0  # that processes may take which were told to end


def durable(evidence: Evidence) -> Outcome:
    """I6. Every file of the newest committed checkpoint is as its manifest says; a finished run has one of
    its last step."""
    if not evidence.checkpoints:
        outcome = Outcome("no checkpoint")
        if evidence.status.startswith("finished") and evidence.trained:
            outcome.problems.append("the run finished without a committed checkpoint")
        elif not evidence.status.startswith("finished"):
            outcome.unknown = "no checkpoint was committed"
        return outcome
    newest = evidence.checkpoints[0]
    outcome = Outcome(f"{newest.name}, {len(evidence.manifest.get('files', {}))} files verified")
    outcome.problems += _mismatches(newest)
    last = max((int(row["step"]) for row in evidence.rows), default=0)
    if evidence.status.startswith("finished") and newest.name != f"step-{last}":
        outcome.problems.append(f"step {last} is trained, but the newest checkpoint is {newest.name}")
    return outcome


def _mismatches(folder: Path) -> Iterator[str]:
    """What differs between a checkpoint and its manifest, the manifest's own SHA-256 included."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder.name}/{MANIFEST} cannot be read ({type(error).__name__}: {error})"
        return
    seal = manifest.pop("sha256", None)
    spelled = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    if seal is None:
        yield f"{folder.name}/{MANIFEST} does not name its own SHA-256"
    elif seal != hashlib.sha256(spelled.encode()).hexdigest():
        yield f"{folder.name}/{MANIFEST} was changed after its commit"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(there - files.keys()):
        yield f"{folder.name}/{name}: the manifest does not name it"
    for name, expected in files.items():
        where = f"{folder.name}/{name}"
        try:
            with (folder / name).open("rb") as stream:
                got = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            yield f"{where}: {error.strerror}"
            continue
        if got != expected["sha256"]:
            yield f"{where}: its SHA-256 is {got[:12]}, the manifest says {expected['sha256'][:12]}"


def clean(evidence: Evidence) -> Outcome:
    """I7. No process of the run is alive and no half-written file is left."""
    run_dir = evidence.run_dir
    left = sorted(str(p.relative_to(run_dir)) for pattern in _LEFT for p in run_dir.rglob(pattern))
    members = _newest_of(evidence.of("member"))
    here = [member for member in members if member.get("began")]
    alive = _alive(here)
    outcome = Outcome(
        f"of {len(members)} worker processes {len(here)} were on the driver's machine, all gone"
    )
    if left:
        outcome.problems.append(f"{len(left)} half-written files: {some(left)}")
    outcome.problems += (f"{m['role']} {m['index']} is still alive as process {m['pid']}" for m in alive)
    if not members:
        outcome.unknown = "the log does not name the workers' processes"
    if evidence.status == "unfinished":
        found = "; ".join(outcome.problems) or "nothing left so far"
        outcome = Outcome(unknown=f"the run is going on or was killed: {found}")
    return outcome


def _newest_of(events: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last event of each member that names its process."""
    newest = {(str(e.get("role")), e.get("index")): e for e in events if e.get("pid")}
    return list(newest.values())


def _alive(members: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those still running after some patience."""
    until = time.monotonic() + _GRACE_S
    while alive := [m for m in members if _runs(int(m["pid"]), str(m["began"]))]:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return alive


def _runs(pid: int, began: str) -> bool:
    """Whether the process `pid` that began then (ticks since boot) is alive: numbers are used again, and a
    zombie holds nothing but its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and fields[19] == began
