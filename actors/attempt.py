"""One attempt of a run: a ledger, a publisher, a prompt stream and a learner that share its number.

    learner publishes the version that it starts from; the fleet proves it
                     |
    held-out evaluation "before", once per run
                     |
    of each stage: survey, where the recipe's order asks for one; drive: rollouts and training overlap
                     |
    the learner has committed its last step and ends

The death of one of the four ends the attempt (`actors.attempts` begins the next one). The fleet lives on: its
members only have to prove the next attempt's first version. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from actors.fleet import Fleet
from actors.guards import Guards, Stopped, cancel
from actors.ordering import Ordering
from actors.plan import Plan
from actors.producer import RayProducer
from actors.ranks import free_ranks, settled_ranks
from actors.remote import named, reach
from actors.roll import Roll
from pipelines.admission import admission_of
from pipelines.journal import Journal
from pipelines.loop import LedgerState, Limits, RoleFailed, RunFailed, drive
from pipelines.scaling import Signals

Outcome = Literal["finished", "stopped", "resized"]
Doing = Literal["start", "measure", "drive", "end"]

LOOK_S = 0.25  # between two looks at the ledger
ANSWER_S = 60.0  # deadline of a call to a service
LAST_S = 10.0  # the same of each of the last ones


class Services(Protocol):
    """What lives as long as an attempt: handles of actors, or objects of this process."""

    @property
    def ledger(self) -> Any: ...

    @property
    def publisher(self) -> Any: ...

    @property
    def prompts(self) -> Any: ...

    @property
    def handles(self) -> Mapping[str, Any]:
        """All of them by role, the learner's host included."""
        ...

    async def fit(self, ranks: int) -> None:
        """Train to the end. Raises RoleFailed by what ended the learner."""
        ...

    def kill(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the run lends to its attempts."""

    begin: Callable[[Plan], Services]
    fleet: Fleet
    events: Journal
    note: Callable[[dict[str, Any]], None]  # takes each new step's metrics
    stop: asyncio.Event
    stage: Callable[[str], AbstractAsyncContextManager[None]]  # names and times what goes on
    evaluate: Callable[[str], Awaitable[None]]  # "before" the first rollout, "after" the last version


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What an attempt has to recover from. `at`: by the monotonic clock."""

    cause: RoleFailed
    at: float


class Attempt:
    """One attempt; its services start with it. `loss`: what it recovers from."""

    def __init__(self, plan: Plan, desk: Desk, loss: Loss | None = None) -> None:
        self.plan, self.desk, self.settings = plan, desk, plan.settings
        self.admission = admission_of(plan.settings, plan.recipe)
        self.services = services = desk.begin(plan)
        self.roll = Roll(plan.attempt, desk.events)
        self.ledger = reach(services.ledger, "ledger", ANSWER_S)
        self.publisher = reach(services.publisher, "publisher", ANSWER_S)
        self.prompts = reach(services.prompts, "data", 10 * ANSWER_S)
        self.ordering = Ordering(plan, desk, services.ledger, self.prompts)
        self.report: Mapping[str, Any] = {}  # the ledger's, newest
        self.signals = Signals(learner_waits=0.0, held_back=0.0)
        self.published = -1  # newest weight version
        self.step = plan.step  # newest learner step that was trained
        self.ranks = plan.settings.learner.workers
        self.outcome: Outcome | None = None
        self._noted = -1  # newest of the ledger's events in the journal
        self._recording = asyncio.Lock()
        self._loss, self._lost_s = loss, 0.0  # seconds of the recovery that something else took
        self._moved = time.monotonic()  # since then the learner is at what it does
        self._grace_ends: float | None = None
        self._doing: Doing = "start"
        self._resizing = False
        self._fit: asyncio.Task[None] | None = None
        self._guards = Guards(desk.stop)

    # -- from begin to end ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Train to the end, or until the run's `stop`; `outcome` says which.

        Raises RoleFailed or RunFailed by what ended it.
        """
        if self.plan.ledger:
            await self._guards.beside(self.ledger.restore(self.plan.ledger))
        await self.desk.fleet.attach(self.services.publisher)
        self._fit = self._guards.add(self._learn())
        self._guards.add(self._watch())
        self._guards.add(self.desk.fleet.orphaned())
        self._guards.add(self.roll.services(self.services.handles))
        with suppress(Stopped):  # what was trained is saved all the same
            await self._begin()
            await self._align()
        self._doing, self._moved = "end", time.monotonic()
        async with self.desk.stage("align"):
            self._guards.dismiss(self._fit)
            await self._guards.beside(self._last_step())
            await self._guards.beside(self.record())
        self.outcome = "stopped" if self.desk.stop.is_set() else "resized" if self._resizing else None
        if self.outcome is None:
            with suppress(Stopped):
                await self._finish()
            self.outcome = "stopped" if self.desk.stop.is_set() else "finished"

    async def _begin(self) -> None:
        first = self.admission.due(self.plan.step + 1)
        async with self.desk.stage("start"):
            deadline_s = self._learner_start_s + self._member_start_s
            one = self.plan.attempt > 1  # a wedged one must not hold up a recovery
            await self._guards.unless_stopped(self.desk.fleet.reached(first, deadline_s, one=one))
        await self._measure(self.desk.evaluate("before"))

    async def _align(self) -> None:
        for stage in range(self.admission.stage_at(self.plan.step + 1), len(self.plan.recipe.stages)):
            await self._measure(self._enter(stage))
            async with self.desk.stage("align"):
                self._doing = "drive"
                await self._guards.beside(self._drive(stage))

    async def _finish(self) -> None:
        """The fleet proves the last version, and is measured with it. The ledger has nothing to add."""
        async with self.desk.stage("final sync"):
            newest = await self._guards.beside(self.publisher.newest())
            await self._guards.unless_stopped(self.desk.fleet.reached(newest, self._member_start_s))
        self._guards.dismiss()
        await self._guards.unless_stopped(self.desk.evaluate("after"))

    async def _measure(self, work: Awaitable[None]) -> None:
        """Work before which the learner waits, and which is no part of a recovery."""
        began, self._doing = time.monotonic(), "measure"
        await self._guards.unless_stopped(work)
        self._lost_s += time.monotonic() - began

    @property
    def _learner_start_s(self) -> float:
        """Until it has published its first version: its ranks come up, load and publish."""
        learner = self.settings.learner
        return float(learner.start_timeout_s + learner.progress_timeout_s)

    @property
    def _member_start_s(self) -> float:
        """Until a generator that was only just lost is replaced; the fleet has closer deadlines."""
        engine = self.settings.rollout.engine
        return 6.0 * engine.start_timeout_s + 3.0 * engine.timeout_s

    async def end(self, saves: bool) -> dict[str, Any]:
        """Let the learner save, give back what was not trained, and end all services; the final counts.

        `saves`: the learner may take until the end of its grace, where it has trained something.
        """
        try:
            return await self._settle(saves)
        except Exception as error:  # a summary without counts is better than none
            return {"unknown": f"the ledger did not answer: {type(error).__name__}"}
        finally:
            await self._guards.end()
            with suppress(Exception):  # a service that is gone, or Ray's head; `dismiss` sees to the rest
                await asyncio.to_thread(self.services.kill)
            await asyncio.to_thread(self.roll.dismiss)
            self.roll.over("the run ends" if saves else "the attempt failed")

    async def _settle(self, saves: bool) -> dict[str, Any]:
        if saves and self._fit is not None and not self._fit.done():
            await asyncio.wait_for(self.ledger.stop(), LAST_S)
            if await asyncio.wait_for(self._unsaved(), LAST_S):
                await asyncio.wait({self._fit}, timeout=self._grace_s())
        await asyncio.wait_for(self.ledger.release(), LAST_S)
        await asyncio.wait_for(self.record(), LAST_S)
        return await asyncio.wait_for(self.ledger.counts(), LAST_S)

    async def record(self) -> None:
        """Bring the ledger's new events and metrics into the run's journals."""
        async with self._recording:
            for event in await self.ledger.events(self._noted):
                self._noted = event["number"]
                if event["event"] == "rank":
                    self.roll.rank(event["rank"], event["node"], event["pid"])
                    continue
                if event["event"] == "published":
                    self.published = max(self.published, event["version"])
                self.desk.events.write(**event)
            for record in await self.ledger.progress(self.step):
                if record["step"] > self.step:
                    self.step, self._moved = record["step"], time.monotonic()
                    self.desk.note({**record, "attempt": self.plan.attempt})

    # -- the learner ----------------------------------------------------------------------------------------

    async def _learn(self) -> None:
        if self.plan.attempt > 1:
            self.ranks = await settled_ranks(self.settings.learner)
        self.desk.events.write("learner", attempt=self.plan.attempt, ranks=self.ranks)
        self._moved = time.monotonic()
        try:
            await self.services.fit(self.ranks)
        except Exception as error:
            raise named(error, "learner") from error

    async def _last_step(self) -> None:
        """The learner trains what is sealed, saves and ends; after a stop within the grace that is left."""
        fit, stop = self._fit, self.desk.stop
        assert fit is not None
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({fit, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not fit.done():
                await self.ledger.stop()
                if not await self._unsaved():
                    return
                await asyncio.wait({fit}, timeout=self._grace_s())
        finally:
            await cancel([stopping])
        if not fit.done():
            grace = f"stop_grace_s = {self.settings.stop_grace_s} s"
            raise RoleFailed("timeout", "learner", f"it did not save within {grace}", False)
        fit.result()

    async def _unsaved(self) -> bool:
        """Whether the learner has trained, or is training, a step of this attempt; of a stopped ledger."""
        report = await self.ledger.report()
        return bool(report["step"] > self.plan.step or report["counts"]["sealed"])

    def _grace_s(self) -> float:
        """What is left of the seconds to save in, which begin when they are first asked for."""
        now = time.monotonic()
        if self._grace_ends is None:
            self._grace_ends = now + self.settings.stop_grace_s
        return max(self._grace_ends - now, 0.0)

    # -- the loop -------------------------------------------------------------------------------------------

    async def _enter(self, stage: int) -> None:
        """Go on where the ledger is, with the prompts of this stage."""
        state: LedgerState = await self.ledger.state()
        if state.phase == "running":
            await self.ordering.enter(stage, state.cursor)
        await self.prompts.seek(state.cursor)

    async def _drive(self, stage: int) -> None:
        rollout = self.settings.rollout
        producer = RayProducer(self.desk.fleet, self.services.ledger, 4 * rollout.engine.timeout_s)
        limits = Limits(
            drain_s=self.settings.stop_grace_s / 2,
            buffer_bytes=rollout.buffer_mib * 2**20,
            # Longer than what it waits for: a lease that is made again, and a step under training.
            patience_s=self.settings.learner.progress_timeout_s + 10.0 * rollout.engine.timeout_s,
        )
        await drive(
            self.prompts,
            producer,
            self.ledger,
            self.desk.fleet,
            self.admission,
            self.desk.stop,
            limits,
            stage,
        )

    async def _watch(self) -> None:
        """Keep the journals, and notice what nobody else would: a learner that no longer moves."""
        while True:
            if self.desk.stop.is_set():
                self._grace_s()  # begins
            await self.record()
            self.report, state = await self.ledger.report(), await self.ledger.state()
            self.signals = self._signals(state)
            self._require_progress()
            await self._regrow()
            await asyncio.sleep(LOOK_S)

    def _signals(self, state: LedgerState) -> Signals:
        """Who waits for whom at this moment."""
        versions, running = self.desk.fleet.versions(), state.phase == "running"
        held = [
            not self.admission.admits(version, state.stage, state.trained, state.live)
            for version in versions.values()
        ]
        return Signals(
            learner_waits=float(running and not self._ready),
            held_back=sum(held) / len(held) if held and running else 0.0,
        )

    @property
    def _ready(self) -> bool:
        """Whether the learner has a step to train."""
        counts = self.report["counts"]
        return bool(counts["sealed"] or counts["buffered"] >= self.admission.groups_per_step)

    def _require_progress(self) -> None:
        """Raises RoleFailed for a learner that hangs, RunFailed for a recovery that takes too long."""
        now, learner = time.monotonic(), self.settings.learner
        starts = self.published < 0 and self._fit is not None and not self._fit.done()
        limit = self._learner_start_s if starts else float(learner.progress_timeout_s)
        if not (starts or self._ready or self._doing == "end"):
            self._moved = now  # it waits for groups, which have deadlines of their own
        elif now - self._moved > limit:
            what = "the first weight version" if starts else f"step {self.step + 1}, or saving,"
            raise RoleFailed("learner_wedged", "learner", f"{what} takes more than {limit:g} s")
        deadline = self.settings.recovery.deadline_s
        if self._loss is None or self.step > self.plan.step or self._doing not in ("start", "drive"):
            return
        if now - self._loss.at - self._lost_s > deadline:
            raise RunFailed(
                f"attempt {self.plan.attempt} trained no step within recovery.deadline_s = {deadline} s of "
                f"the loss that it recovers from: {self._loss.cause}; the ledger: {self.report['counts']}"
            ) from self._loss.cause

    async def _regrow(self) -> None:
        """A learner with fewer ranks than wanted ends after the step under way, once there is room again."""
        missing = self.settings.learner.workers - self.ranks
        if missing <= 0 or self._resizing or self.step == self.plan.step or self._doing != "drive":
            return
        if await free_ranks(self.settings.learner) >= missing:
            self._resizing = True
            self.desk.events.write("regrow", attempt=self.plan.attempt, ranks=self.ranks)
            await self.ledger.stop()
