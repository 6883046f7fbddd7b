"""What an attempt is to do: all that is known before Ray starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.checkpoints import Checkpoint, recover, repair
from actors.tickets import BODIES
from pipelines.journal import read_lines
from pipelines.settings import Settings

if TYPE_CHECKING:  # a plan is light: recipes import torch
    from pipelines.data.base import Inventory, Source
    from pipelines.recipe import Recipe
    from pipelines.types import Canary


@dataclass(frozen=True, kw_only=True)
class Plan:
    settings: Settings
    run_dir: Path
    recipe: Recipe
    source: Source
    inventory: Inventory
    model: Path  # what the run started from: the learner's frozen reference, and what engines load
    canaries: tuple[Canary, ...]
    attempt: int = 1
    resumed: Path | None = None  # the verified checkpoint that this attempt continues
    step: int = 0  # learner steps that the checkpoint holds
    ledger: dict[str, Any] = field(default_factory=dict[str, Any])  # its snapshot of the ledger
    rejected: tuple[str, ...] = ()  # newer checkpoints that did not verify, each with the reason

    def renewed(self) -> Plan:
        """The plan of the next attempt: from the newest checkpoint that verifies, or from the start.

        Raises BadCheckpoint when there are checkpoints but none verifies.
        """
        found = recover(self.run_dir, self.settings.checkpoint.mirror)
        # An attempt that died before its first commit has used a number as well.
        events = read_lines(self.run_dir / "events.jsonl")
        used = [self.attempt, *(event["attempt"] for event in events if event["event"] == "resumed")]
        if found is None:
            return replace(self, attempt=1 + max(used), resumed=None, step=0, ledger={}, rejected=())
        return replace(
            self,
            attempt=1 + max([int(found.manifest["attempt"]), *used]),
            resumed=found.path,
            step=found.step,
            ledger=_snapshot(found),
            rejected=found.rejected,
        )

    def settled_drops(self) -> dict[str, str]:
        """Group -> reason of the drops that the checkpoint remembers."""
        return {name: reason for name, reason, _ in self.ledger.get("dropped", ())}


REMAINS = (
    "checkpoints/.step-*.partial",
    "weights/.version-*.partial",
    "order.partial",
    "mirror.partial",
)


def sweep(run_dir: Path) -> None:
    """Remove what processes that are gone left half-written. For the run folder's owner, between attempts."""
    repair(run_dir)
    for remains in (path for pattern in REMAINS for path in run_dir.glob(pattern)):
        if remains.is_dir():
            shutil.rmtree(remains, ignore_errors=True)
        else:
            remains.unlink(missing_ok=True)


def _snapshot(found: Checkpoint) -> dict[str, Any]:
    bodies = found.path / BODIES
    return dict(found.manifest["ledger"]) | ({BODIES: bodies.read_bytes()} if bodies.exists() else {})
