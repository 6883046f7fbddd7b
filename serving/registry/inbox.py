"""What running alignments publish (`actors.publishing`) becomes a server's canary."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from actors.publishing import FORMAT, INBOX
from serving.registry.registry import Registry, RegistryError

log = logging.getLogger(__name__)


def collect(registry: Registry) -> None:
    """Register what the inbox holds, oldest first, and make the newest of it the canary.

    While nothing is promoted it waits: a canary runs beside a promoted version. What cannot be registered is
    kept aside as `bad-...` with the reason in the log. Two servers may do so at a time.
    """
    inbox = registry.folder / INBOX
    notes = sorted(inbox.glob("[!.]*.json"), key=_age) if inbox.is_dir() else []
    if not notes or registry.promoted() is None:
        return
    for note in notes[:-1]:
        _take(registry, note, canary=False)
    _take(registry, notes[-1], canary=True)


def _take(registry: Registry, note: Path, *, canary: bool) -> None:
    folder = note.with_suffix("")
    try:
        facts = _facts(note)
        run, step = str(facts["run"]), int(facts["step"])
        if Path(run).name != run:
            raise ValueError(f"a run's name is no path, got {run!r:.80}")
        entry = registry.register(folder / run / "checkpoints" / f"step-{step}")
        if canary:
            told = f"published by the run {run} at step {step}"
            registry.set_canary(entry.id, facts["weight"], told)
    except FileNotFoundError:
        return  # another server took it
    except (RegistryError, ValueError) as error:
        log.warning("%s: not taken as a canary: %s", note.name, error)
        _set_aside(note, folder)
        return
    note.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _facts(note: Path) -> dict[str, Any]:
    """Raises ValueError for what `actors.publishing` did not write."""
    facts = json.loads(note.read_bytes())
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT}")
    if not isinstance(facts.get("weight"), int | float) or not {"run", "step"} <= facts.keys():
        raise ValueError("expected run, step and weight")
    return facts


def _set_aside(note: Path, folder: Path) -> None:
    bad = folder.with_name(f"bad-{folder.name}")
    shutil.rmtree(bad, ignore_errors=True)
    if folder.exists():
        os.rename(folder, bad)
    note.unlink(missing_ok=True)


def _age(note: Path) -> tuple[float, str]:
    try:
        return note.stat().st_mtime, note.name
    except FileNotFoundError:  # another server took it
        return 0.0, note.name
