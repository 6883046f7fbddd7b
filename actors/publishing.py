"""Checkpoints for a running server: put into the inbox of its registry (`serving.registry.inbox`).

REGISTRY/inbox/RUN-step-N/RUN/    like the run's folder: the one checkpoint, linked where the file system can,
                                  and what else a registry reads of a run
REGISTRY/inbox/RUN-step-N.json    format, run, step, weight; written last, without it nothing is there
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from pipelines import durable
from pipelines.runs import CONFIG
from pipelines.settings import Settings

INBOX = "inbox"
FORMAT = 1
LINEAGE = (CONFIG, "metrics.jsonl", "events.jsonl")

log = logging.getLogger(__name__)


def offer(settings: Settings, checkpoint: Path, step: int) -> None:
    """Publish a checkpoint that was just committed, where it is one to be published. It never raises
    OSError: a server that cannot be reached is no reason to end a run."""
    publish, every = settings.publish, settings.checkpoint.every
    if publish.registry is None or step % every or (step // every) % publish.every:
        return
    run = checkpoint.parents[1].name
    try:
        deliver(Path(publish.registry), checkpoint, run, step, publish.weight)
    except OSError as error:
        log.warning("publish.registry: step %d was not published: %s", step, error)


def deliver(registry: Path, checkpoint: Path, run: str, step: int, weight: float) -> Path:
    """Put a checkpoint into the inbox; returns the file that announces it. Raises OSError."""
    inbox = registry / INBOX
    inbox.mkdir(parents=True, exist_ok=True)
    name = f"{run}-step-{step}"
    folder, note = inbox / name, inbox / f"{name}.json"
    partial = inbox / f".{name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, partial / run / "checkpoints" / checkpoint.name, copy_function=_link)
        for file in LINEAGE:
            if (checkpoint.parents[1] / file).exists():
                shutil.copy2(checkpoint.parents[1] / file, partial / run)
        note.unlink(missing_ok=True)  # of an earlier attempt at this step
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    facts: dict[str, Any] = {"format": FORMAT, "run": run, "step": step, "weight": weight}
    durable.replace_file(note, json.dumps(facts).encode())
    return note


def _link(source: str, target: str) -> str:
    """Files of a checkpoint are never written again, so a link will do."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
