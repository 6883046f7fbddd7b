"""One run, from settings to a finished folder: builds everything that needs Ray.

the fleet starts          the first attempt starts its learner, which publishes version 0
        \\                       |
         proves version 0 -------+
                                 |
              attempts, until one reaches the end (`actors.attempts`)
                                 |
              the fleet ends; the auditor recounts; summary and report
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors import deterministic, disk
from actors.attempts import Attempts, Desk
from actors.checkpoints import newest_verified
from actors.crew import RayMakers, begin, generator, needs
from actors.evaluator import evaluate, heldout_rows
from actors.fleet import Fleet
from actors.placement import ray_session
from actors.plan import Plan
from actors.preparation import prepare
from actors.remote import Remote
from pipelines import checkpoint
from pipelines.audit import audit
from pipelines.evaluation import heldout
from pipelines.journal import Journal, read_lines
from pipelines.loop import RoleFailed, RunFailed
from pipelines.monitors import Monitors
from pipelines.ownership import owned
from pipelines.planning.rates import finished
from pipelines.report import render
from pipelines.report.news import Announced
from pipelines.report.progress import Progress
from pipelines.scaling import Signals, Sizes
from pipelines.settings import Settings
from pipelines.summary import summarise, write_summary

LAST_S = 15.0  # that something which was cancelled gets to end
EVALUATIONS = 3  # tries; a generator that dies meanwhile is replaced


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
    with owned(run_dir), disk.named(run_dir, disk.PROBE):
        plan = prepare(settings, run_dir, resume=resume)
        if settings.deterministic:
            return deterministic.align(plan, progress or Progress(settings.learner.steps))
        with ray_session(settings):
            return asyncio.run(_execute(plan, progress or Progress(settings.learner.steps)))


async def _ended(task: asyncio.Future[Any], patience_s: float) -> None:
    """Cancel a task and wait for its end. Once more after `patience_s`: the `asyncio.wait_for` of Python 3.11
    swallows a cancellation that comes with its result."""
    for wait_s in (patience_s, LAST_S):
        task.cancel()
        await asyncio.wait({task}, timeout=wait_s)
        if task.done():
            break
    if task.done() and not task.cancelled():
        task.exception()  # it was told before, or comes too late to matter


async def _execute(plan: Plan, progress: Progress) -> dict[str, Any]:
    return await Run(plan, progress).execute()


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


class Run:
    """One run: its fleet, its attempts, its journals, and what it leaves behind."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.progress = progress
        self.stop = asyncio.Event()
        self.signum: int | None = None
        self.events = Announced(plan.run_dir / "events.jsonl", progress.say)
        self.metrics = Journal(plan.run_dir / "metrics.jsonl")
        self.monitors = Monitors(plan.settings.monitors)
        self.alarmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seconds: dict[str, float] = {}
        self.doing = "start"
        self.alarms: list[dict[str, Any]] = []
        self.fleet = self._fleet()
        desk = Desk(
            begin=begin,
            fleet=self.fleet,
            events=self.events,
            note=self._note,
            stop=self.stop,
            stage=self._stage,
            evaluate=self._evaluate,
        )
        self.attempts = Attempts(plan, desk)

    async def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        self._watch_signals()
        for line in read_lines(self.plan.run_dir / "metrics.jsonl"):
            self.monitors.see(line)  # a resumed run goes on from what was seen
        failure: BaseException | None = None
        try:
            await self._train()
        except BaseException as error:
            failure = error
            with suppress(OSError):  # of a full disk, which may be the failure
                (self.plan.run_dir / "failure.txt").write_text("".join(traceback.format_exception(error)))
        try:
            summary = self._leave(failure, time.monotonic() - started)
        except Exception as error:
            if failure is None:
                raise
            failure.add_note(f"and the summary could not be written: {type(error).__name__}: {error}")
        if failure is not None:
            raise failure
        return summary

    def _leave(self, failure: BaseException | None, wall_seconds: float) -> dict[str, Any]:
        """Close the journals, recount, and write what people read."""
        self.events.write("stage_seconds", seconds=self.seconds)
        self.events.close()
        self.metrics.close()
        self.progress.close()
        summary = summarise(
            self.plan.run_dir,
            status=self._status(failure),
            seed=self.settings.seed,
            comparisons=self.attempts.counts,
            wall_seconds=wall_seconds,
        )
        summary["audit"] = audit(self.plan.run_dir).to_json()
        write_summary(self.plan.run_dir, summary)
        render(self.plan.run_dir)
        return summary

    def _status(self, failure: BaseException | None) -> str:
        if failure is not None:
            return f"failed: {type(failure).__name__}: {failure}"
        return f"interrupted: {signal.Signals(self.signum).name}" if self.signum is not None else "finished"

    async def _train(self) -> None:
        """The attempts, beside a fleet that may fail and monitors that may object."""
        work = asyncio.create_task(self.attempts.run())
        beside: list[asyncio.Future[Any]] = [
            asyncio.create_task(self._serve()),
            self.alarmed,
        ]
        try:
            done, _ = await asyncio.wait({work, *beside}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {work}:
                ended.result()  # these end only by failing
            work.result()
        finally:
            await _ended(work, self.settings.stop_grace_s + LAST_S)  # the attempt first: its learner saves
            for task in beside:
                await _ended(task, LAST_S)
            self.doing = "over"
            await self.fleet.stop()

    def _fleet(self) -> Fleet:
        rollout, engine = self.settings.rollout, self.settings.rollout.engine
        return Fleet(
            RayMakers(self.plan),
            Sizes.of(rollout),
            self.events,
            canaries=self.plan.canaries,
            health_timeout_s=rollout.health_timeout_s,
            progress_timeout_s=rollout.progress_timeout_s,
            start_timeout_s=3 * engine.start_timeout_s,  # loading, compiling, first samples
            adopt_timeout_s=3 * engine.timeout_s,  # draining, loading and proving have one each
            folder=self.plan.run_dir,
            signals=self._signals,
            facts=self._facts,
            needs=needs(self.settings),
        )

    def _signals(self) -> Signals:
        attempt = self.attempts.now
        return attempt.signals if attempt else Signals(learner_waits=0.0, held_back=0.0)

    async def _serve(self) -> None:
        await self.fleet.start()
        await self.fleet.supervise()

    # -- what the attempts ask for --------------------------------------------------------------------------

    def _note(self, record: dict[str, Any]) -> None:
        """A step was trained."""
        self.metrics.append(record)
        self.progress.step(record)
        for alarm in self.monitors.see(record):
            self.alarms.append(asdict(alarm))
            self.events.write("alarm", **asdict(alarm))
            if self.settings.monitors.action == "stop" and not self.alarmed.done():
                self.alarmed.set_exception(RunFailed(alarm.text))

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        began, self.doing = time.monotonic(), name
        self.progress.stage(name)
        self._busy(name)
        try:
            yield
        finally:
            self._busy(name)
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 2)

    def _busy(self, stage: str) -> None:
        """Note what generators and scorers have done so far: `plumbline plan` reads it."""
        attempt = self.attempts.now
        if stage == "align" and attempt is not None:
            roles = {"generators": self.fleet.loads("generator"), "scorers": self.fleet.loads("scorer")}
            self.events.write("busy", **roles, finished=finished(attempt.report))

    async def _evaluate(self, when: str) -> None:
        """Held-out measures of the embedded world; "before" only once per run."""
        counts, rollout = self.settings.evaluation, self.settings.rollout
        path = self.plan.run_dir / "evaluation" / f"{when}.jsonl"
        again = when == "before" and self.attempts.plan.attempt > 1 and path.exists()
        if self.settings.data.source != "glyphs" or not (counts.scenes or counts.questions) or again:
            return
        rows = list(heldout_rows(counts.scenes, counts.questions))
        async with self._stage(f"evaluate {when}"):
            for tried in range(1, EVALUATIONS + 1):
                newest = max(self.fleet.versions().values(), default=0)
                await self.fleet.reached(newest, 6.0 * rollout.engine.start_timeout_s)  # one may be replaced
                generators = list(self.fleet.serving("generator").values())
                try:
                    await evaluate(generators, rows, path, rollout.max_tokens, 4 * rollout.engine.timeout_s)
                    return
                except RoleFailed as error:
                    if tried == EVALUATIONS or not error.retry:
                        raise
                    self.events.write("evaluation_failed", when=when, cause=str(error))

    # -- what people see ------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What `plumbline status` shows beside the fleet."""
        attempt = self.attempts.now
        return {
            "name": self.settings.name,
            "phase": "stopping" if self.stop.is_set() and self.doing != "over" else self.doing,
            "attempt": self.attempts.plan.attempt,
            "step": attempt.step if attempt else self.plan.step,
            "steps": self.settings.learner.steps,
            "ranks": attempt.ranks if attempt else 0,
            "leases": dict(attempt.report) if attempt else {},
            "newest": attempt.published if attempt else -1,
            "alarms": self.alarms,
        }

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
