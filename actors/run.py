"""One run, from settings to a finished folder: builds everything that needs Ray and drives the loop.

generators start   learner starts          (in parallel)
        \\            |  publishes version 0
         adopt and prove version 0
                     |
         held-out evaluation "before"
                     |
         survey, where the recipe's order asks for one
                     |
         drive: rollouts and training overlap within the weight lag
                     |
         adopt and prove the last version; held-out evaluation "after"
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray.train import WorkerGroupError

from actors.checkpoints import newest_verified
from actors.crew import Crew, Plan, build, generator, trainer
from actors.evaluator import evaluate, heldout_rows
from actors.fleet import Fleet
from actors.placement import ray_session
from actors.preparation import prepare
from actors.producer import RayProducer, Remote, named
from pipelines import checkpoint
from pipelines.admission import admission_of
from pipelines.evaluation import heldout
from pipelines.journal import Journal
from pipelines.loop import Limits, RunFailed, drive
from pipelines.report import recount, render
from pipelines.report.progress import Progress
from pipelines.schedules import Order
from pipelines.settings import Settings
from pipelines.summary import summarise, write_summary

T = TypeVar("T")
SURVEY_AT_ONCE = 64  # prompts surveyed at one time


class Interrupted(Exception):
    """A signal asked the run to end; what was trained is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def align(
    settings: Settings, *, run_dir: Path, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run `settings` in `run_dir` and return the summary that is also written there.

    Ends cleanly on the first SIGINT or SIGTERM: the learner saves and the summary's status is
    "interrupted: <signal>". The second signal exits at once.

    Raises:
        SettingsError, DataError: before anything starts, for what cannot run.
        RuntimeError: the run failed; the message names the role and the cause, the summary is written.
    """
    plan = prepare(settings, run_dir, resume=resume)
    with ray_session(settings):
        return asyncio.run(Run(plan, progress or Progress(settings.learner.steps)).execute())


def evaluate_checkpoint(settings: Settings, target: Path) -> dict[str, Any]:
    """Held-out measures of a checkpoint, or of a run's newest one. Raises SettingsError for neither."""
    model = target
    if (target / "checkpoints").is_dir():
        found = newest_verified(target)
        model = found.path if found else target
    checkpoint.inspect(model)
    settings = settings.model_copy(update={"model": str(model)})
    with ray_session(settings), tempfile.TemporaryDirectory() as folder:
        plan = prepare(settings, Path(folder), resume=False)
        return asyncio.run(_evaluate_checkpoint(plan, Path(folder) / "records.jsonl"))


async def _evaluate_checkpoint(plan: Plan, path: Path) -> dict[str, Any]:
    counts, rollout = plan.settings.evaluation, plan.settings.rollout
    generators = [generator(plan, index) for index in range(rollout.generators)]
    await start(generators, plan)
    rows = list(heldout_rows(counts.scenes, counts.questions))
    return heldout(await evaluate(generators, rows, path, rollout.max_tokens, 4 * rollout.engine.timeout_s))


async def start(generators: Sequence[Any], plan: Plan) -> None:
    """Bring all engines up. Raises RoleFailed with the name of the generator that did not start."""
    timeout_s = 3 * plan.settings.rollout.engine.start_timeout_s  # loading, compiling, first samples
    named_ones = [Remote(one, f"generator-{index}", timeout_s) for index, one in enumerate(generators)]
    await asyncio.gather(*(one.start(plan.canaries) for one in named_ones))


def learner_failure(ended: asyncio.Future[Any]) -> None:
    """Raise what a learner rank failed on, by its cause rather than by how Ray Train wraps it."""
    error = ended.exception() if not ended.cancelled() else None
    if isinstance(error, WorkerGroupError):
        rank, cause = next(iter(error.worker_failures.items()))
        raise RunFailed(f"the learner failed on rank {rank}: {named(cause, 'learner')}") from error


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run `work` in a thread that does not keep the process alive, unlike those of asyncio's pool."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            reported, outcome = future.set_exception, error
        else:
            reported, outcome = future.set_result, result
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, reported, outcome)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return future


class Run:
    """One attempt of a run."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.admission = admission_of(plan.settings, plan.recipe)
        self.progress = progress
        self.stop = asyncio.Event()
        self.signum: int | None = None
        self.events = Journal(plan.run_dir / "events.jsonl")
        self.metrics = Journal(plan.run_dir / "metrics.jsonl")
        self.seconds: dict[str, float] = {}
        self.fit: asyncio.Future[Any] | None = None  # the learner, under Ray Train
        self.guards: list[asyncio.Future[Any]] = []  # they only end by failing, or when the run is over
        self.seen = plan.step  # newest learner step in metrics.jsonl
        self.noted = -1  # newest of the ledger's events in events.jsonl
        self.crew: Crew
        self.fleet: Fleet

    async def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        self._watch_signals()
        if self.plan.attempt > 1:
            self.events.write("resumed", attempt=self.plan.attempt, step=self.plan.step)
        failure: BaseException | None = None
        self.crew = build(self.plan)
        try:
            await self._stages()
        except Interrupted:
            pass  # the summary says so
        except BaseException as error:
            failure = error
        counts = await self._settle()
        self.progress.close()
        summary = summarise(
            self.plan.run_dir,
            status=self._status(failure),
            seed=self.settings.seed,
            comparisons=counts,
            wall_seconds=time.monotonic() - started,
        )
        summary["recount"] = recount(self.plan.run_dir)
        write_summary(self.plan.run_dir, summary)
        render(self.plan.run_dir)
        if failure is not None:
            (self.plan.run_dir / "failure.txt").write_text("".join(traceback.format_exception(failure)))
            raise failure
        return summary

    def _status(self, failure: BaseException | None) -> str:
        if failure is not None:
            return f"failed: {type(failure).__name__}: {failure}"
        return f"interrupted: {signal.Signals(self.signum).name}" if self.signum is not None else "finished"

    async def _settle(self) -> dict[str, Any]:
        """Let the learner save and end, give back what was not trained, and close the journals."""
        ledger = self.crew.ledger
        try:
            if self.fit is not None and not self.fit.done():
                await asyncio.wait_for(ledger.stop.remote(), 5)
                await asyncio.wait({self.fit}, timeout=self.settings.stop_grace_s)
            await asyncio.wait_for(ledger.release.remote(), 10)
            await self._record_new_steps()
            return await asyncio.wait_for(ledger.counts.remote(), 10)
        except Exception as error:  # a summary without counts is better than none
            return {"unknown": f"the ledger did not answer: {type(error).__name__}"}
        finally:
            for guard in self.guards:
                guard.cancel()
            self.events.write("stage_seconds", seconds=self.seconds)
            self.events.close()
            self.metrics.close()

    # -- stages ---------------------------------------------------------------------------------------------

    async def _stages(self) -> None:
        plan, crew = self.plan, self.crew
        if plan.ledger:
            await crew.ledger.restore.remote(plan.ledger)
        patience = 3 * self.settings.rollout.engine.timeout_s  # draining, loading and proving have one each
        self.fleet = Fleet(crew.generators, crew.publisher, self.events, patience)
        self.fit = in_thread(trainer(plan, crew).fit)
        self.guards = [self.fit, asyncio.create_task(self._record_steps())]
        async with self._stage("start"):
            await self._guarded(start(crew.generators, plan))
            self.guards.append(asyncio.create_task(self.fleet.follow()))
            first = self.admission.due(plan.step + 1)
            deadline = self.settings.learner.start_timeout_s
            await self._guarded(self.fleet.reached(first, deadline))
        await self._evaluate("before")
        for stage in range(self.admission.stage_at(plan.step + 1), len(plan.recipe.stages)):
            if self.stop.is_set():
                break
            await self._order_prompts(stage)
            async with self._stage("align"):
                await self._align(stage)
        async with self._stage("align"):
            self.guards.remove(self.fit)
            await self._guarded(self.fit, stoppable=False)
            await self._record_new_steps()
        if self.stop.is_set():
            return
        async with self._stage("final sync"):
            newest = await crew.publisher.newest.remote()
            await self._guarded(self.fleet.reached(newest, patience))
        await self._evaluate("after")

    async def _align(self, stage: int) -> None:
        ledger = Remote(self.crew.ledger, "ledger")
        work = drive(
            Remote(self.crew.prompts, "data"),
            RayProducer(self.crew.scorers, timeout_s=4 * self.settings.rollout.engine.timeout_s),
            ledger,
            self.fleet,
            self.admission,
            self.stop,
            Limits(drain_s=self.settings.stop_grace_s / 2),
            stage,
        )
        await self._guarded(work, stoppable=False)

    async def _evaluate(self, when: str) -> None:
        counts = self.settings.evaluation
        path = self.plan.run_dir / "evaluation" / f"{when}.jsonl"
        done = when == "before" and self.plan.attempt > 1 and path.exists()
        if self.settings.data.source != "glyphs" or not (counts.scenes or counts.questions) or done:
            return
        async with self._stage(f"evaluate {when}"):
            rows = list(heldout_rows(counts.scenes, counts.questions))
            rollout = self.settings.rollout
            deadline = 4 * rollout.engine.timeout_s
            await self._guarded(evaluate(self.crew.generators, rows, path, rollout.max_tokens, deadline))

    async def _order_prompts(self, stage: int) -> None:
        """Go on where the ledger is, with the stage's prompts in the order of the recipe.

        Orders are kept in `order.json`: a resumed run would survey by newer weights and find another one.
        """
        order, file = self.plan.recipe.stages[stage].order, self.plan.run_dir / "order.json"
        state = await self._guarded(self.crew.ledger.state.remote())
        if order.key is not None and state.phase == "running":
            known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
            if str(stage) not in known:
                await self._guarded(self.crew.prompts.seek.remote(state.cursor))
                known[str(stage)] = {"start": state.cursor, "order": order(await self._survey(stage, order))}
                file.write_text(json.dumps(known))
            block = known[str(stage)]
            await self._guarded(self.crew.prompts.reorder.remote(block["order"], block["start"]))
        await self._guarded(self.crew.prompts.seek.remote(state.cursor))

    async def _survey(self, stage: int, order: Order) -> list[float]:
        """Difficulty of as many prompts as the stage trains on."""
        crew, admission = self.crew, self.admission
        steps = admission.stages[stage].last - admission.first(stage) + 1
        lanes = asyncio.Semaphore(SURVEY_AT_ONCE)

        async def one(index: int, parcel: Any) -> float:
            async with lanes:
                scorer = crew.scorers[index % len(crew.scorers)]
                place = index % len(crew.generators)
                return await scorer.survey.remote(parcel, order, self.settings.seed + index, place)

        async with self._stage("survey"):
            prompts = await self._guarded(crew.prompts.next.remote(steps * admission.groups_per_step))
            surveyed = asyncio.gather(*(one(i, item[3]) for i, item in enumerate(prompts)))
            difficulty = await self._guarded(surveyed)
        rounded = [round(value, 4) for value in difficulty]
        self.events.write("survey", stage=stage, key=order.key, difficulty=rounded)
        return difficulty

    # -- helpers --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        began = time.monotonic()
        self.progress.stage(name)
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 2)

    async def _guarded(self, work: Awaitable[T], *, stoppable: bool = True) -> T:
        """Await `work`; raise at once what a background task raises, or `Interrupted` on a signal."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self.stop.wait())
        watched = {task, *self.guards, *([stopping] if stoppable else [])}
        try:
            while not task.done():
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if stopping in done and self.signum is not None and not task.done():
                    raise Interrupted(self.signum)
                for guard in done & set(self.guards):
                    learner_failure(guard)
                    guard.result()  # raises the failure
                    watched.discard(guard)  # the learner may end before the loop has noticed
            learner_failure(task)
            return task.result()
        finally:
            stopping.cancel()
            if not task.done() and task is not self.fit:
                task.cancel()

    async def _record_steps(self) -> None:
        while True:
            await self._record_new_steps()
            await asyncio.sleep(0.25)

    async def _record_new_steps(self) -> None:
        for event in await self.crew.ledger.events.remote(self.noted):
            self.noted = event["number"]
            self.events.append(event)
        for record in await self.crew.ledger.progress.remote(self.seen):
            if record["step"] > self.seen:
                self.seen = record["step"]
                self.metrics.append(record)
                self.progress.step(record)

    def _watch_signals(self) -> None:
        def received(signum: int) -> None:
            if self.signum is not None:
                self.progress.close()
                saved = sorted((self.plan.run_dir / "checkpoints").glob("step-*"))
                last = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint"
                print(f"plumbline: second signal, exiting at once; {last}", file=sys.stderr, flush=True)
                os._exit(128 + signum)
            self.signum = signum
            self.progress.stage("stopping: the learner saves")
            self.stop.set()

        handlers: dict[int, Callable[[], None]] = {
            signal.SIGINT: lambda: received(signal.SIGINT),
            signal.SIGTERM: lambda: received(signal.SIGTERM),
        }
        for signum, handler in handlers.items():
            asyncio.get_running_loop().add_signal_handler(signum, handler)
