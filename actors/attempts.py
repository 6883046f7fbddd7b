"""The attempts of a run, one after the other, until one reaches the end.

Ledger, publisher, prompt stream and learner belong to one attempt. The death of one of them ends it, and the
next one begins from the newest checkpoint that verifies. The fleet lives on. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.attempt import Attempt, Desk, Loss, Services
from actors.plan import Plan, sweep
from pipelines.loop import RoleFailed, RunFailed

__all__ = ["Attempt", "Attempts", "Desk", "Loss", "Services"]


@dataclass
class Attempts:
    """Runs attempts until one reaches the end; keeps what is known of the newest one."""

    plan: Plan
    desk: Desk
    now: Attempt | None = None
    counts: dict[str, Any] = field(default_factory=dict[str, Any])  # the ledger's, of the newest that ended

    async def run(self) -> None:
        """Until the end, or until the run's `stop`.

        Raises RunFailed, RoleFailed or what else cannot be mended by another attempt.
        """
        restarts = 0  # in a row that left no newer checkpoint behind
        loss: Loss | None = None
        while True:
            self._announce()
            self.now = Attempt(self.plan, self.desk, loss)
            loss = await self._carry_out(self.now)
            if self.now.outcome in ("finished", "stopped"):
                return
            # In a thread, since it reads whole checkpoints: the fleet has to be looked after meanwhile.
            renewed = await asyncio.to_thread(self.plan.renewed)
            if loss is not None:
                restarts = 1 if renewed.step > self.plan.step else restarts + 1
                self._require_hope(restarts, renewed.step, loss.cause)
            self.plan = renewed
            if self.desk.stop.is_set():
                return

    async def _carry_out(self, attempt: Attempt) -> Loss | None:
        """Run an attempt and end it in any case; the failure that the next one may mend."""
        saves = True
        try:
            await attempt.run()
            return None
        except RoleFailed as error:
            self.desk.events.write(
                "attempt_failed", attempt=self.plan.attempt, role=error.role, cause=str(error)
            )
            if not error.retry or self.desk.stop.is_set():
                raise
            saves = False
            return Loss(cause=error, at=time.monotonic())
        finally:
            self.counts = await attempt.end(saves)
            with suppress(OSError):  # what stays is the auditor's business
                await asyncio.to_thread(sweep, self.plan.run_dir)

    def _announce(self) -> None:
        plan = self.plan
        if plan.attempt > 1:
            self.desk.events.write(
                "resumed", attempt=plan.attempt, step=plan.step, dropped=plan.settled_drops()
            )
        for rejected in plan.rejected:
            self.desk.events.write("checkpoint_rejected", attempt=plan.attempt, reason=rejected)

    def _require_hope(self, restarts: int, step: int, cause: RoleFailed) -> None:
        most = self.plan.settings.recovery.max_restarts
        if restarts > most:
            raise RunFailed(
                f"attempt {self.plan.attempt} ended with {cause}; recovery.max_restarts = {most}: "
                f"{restarts - 1} restarts in a row left no newer checkpoint than step {step}"
            ) from cause
