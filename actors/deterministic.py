"""A run in one process and one thread, without Ray, that can be repeated bit for bit.

It drives the same ledger, scorer, group programs, proofs, learner and commits as a run on a cluster, and
leaves the same folder. Resumed from any kill, its weights, optimizer, random states and the fate of every
group are those of a run that was never interrupted, on the same machine with the same libraries:

- all groups that a step lacks are sampled in one call, in the order of the prompts (`actors.waves`);
- samples are seeded by their group, and every step by its number;
- the generator always starts from the run's model and takes over the weights of the checkpoint;
- nothing is under way when a checkpoint is committed, so a resumed run finds the ledger as it was.

Every manifest holds the fingerprint of its step (`actors.fingerprint`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from actors.checkpoints import MANIFEST
from actors.fingerprint import KEY, fingerprint
from actors.heldout import heldout_rows
from actors.in_process import LocalLoop, LocalPorts, Run
from actors.plan import Plan
from pipelines.audit import audit
from pipelines.control import write_status
from pipelines.journal import Journal, read_lines
from pipelines.loop import RunFailed
from pipelines.monitors import Monitors
from pipelines.programs.sampling import Foreign
from pipelines.report import render
from pipelines.report.progress import Progress
from pipelines.requirements import steps_of
from pipelines.summary import summarise, write_summary
from pipelines.types import Rollout, WeightVersion

LATELY = "lately"  # in a manifest: answers to earlier prompts that programs may draw on
ROLLOUTS: TypeAdapter[tuple[Rollout, ...]] = TypeAdapter(tuple[Rollout, ...])


def align(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Train `plan` and return the summary that is also written to its folder.

    Ends before the next step on the first SIGINT or SIGTERM, with a checkpoint; the second exits at once.
    Raises what the run failed on; the summary is written then as well.
    """
    with one_thread():
        return Aligned(plan, progress).execute()


class Aligned:
    """One attempt of a deterministic run: its journals, and what it leaves behind."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.settings, self.progress = plan, plan.settings, progress
        self.events = Journal(plan.run_dir / "events.jsonl")
        self.metrics = Journal(plan.run_dir / "metrics.jsonl")
        self.monitors = Monitors(plan.settings.monitors)
        self.seconds: dict[str, float] = {}
        self.counts: Mapping[str, Any] = {}
        self.alarms: list[dict[str, Any]] = []
        self.signum: int | None = None
        self.run: Run | None = None
        self._noted, self._step = -1, plan.step  # newest event and step in the journals

    def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        failure: BaseException | None = None
        with self._signals():
            try:
                self._train()
            except BaseException as error:
                failure = error
        self.events.write("stage_seconds", seconds=self.seconds)
        for open_one in (self.events, self.metrics, self.progress):
            open_one.close()
        self._tell("over")
        folder = self.plan.run_dir
        summary = summarise(
            folder,
            status=self._status(failure),
            seed=self.settings.seed,
            comparisons=self.counts,
            wall_seconds=time.monotonic() - started,
        )
        summary["audit"] = audit(folder).to_json()
        write_summary(folder, summary)
        render(folder)
        if failure is not None:
            (folder / "failure.txt").write_text("".join(traceback.format_exception(failure)))
            raise failure
        return summary

    def _status(self, failure: BaseException | None) -> str:
        if failure is not None:
            return f"failed: {type(failure).__name__}: {failure}"
        return f"interrupted: {signal.Signals(self.signum).name}" if self.signum is not None else "finished"

    def _train(self) -> None:
        plan = self.plan
        if plan.attempt > 1:
            dropped = plan.settled_drops()
            self.events.write("resumed", attempt=plan.attempt, step=plan.step, dropped=dropped)
        for line in read_lines(plan.run_dir / "metrics.jsonl"):
            self.monitors.see(line)  # a resumed run goes on from what was seen
        with self._stage("start"):
            run = self.run = KeptRun(self)
        with run:
            run.stopped = self.signum is not None
            self._evaluate(run, "before")
            with self._stage("align"):
                try:
                    run.train()
                finally:
                    run.do(run.ledger.release())
                    self.note(run)
            if self.signum is None:
                self._evaluate(run, "after")

    def _evaluate(self, run: Run, when: str) -> None:
        """Held-out measures of the embedded world; "before" only once per run."""
        counts = self.settings.evaluation
        path = self.plan.run_dir / "evaluation" / f"{when}.jsonl"
        if self.settings.data.source != "glyphs" or not (counts.scenes or counts.questions):
            return
        if when == "before" and (self.plan.attempt > 1 or self.signum is not None):
            return
        with self._stage(f"evaluate {when}"):
            path.unlink(missing_ok=True)
            journal = Journal(path)
            for record in run.records(list(heldout_rows(counts.scenes, counts.questions))):
                journal.append(record)
            journal.close()

    def note(self, run: Run) -> None:
        """Bring the ledger's new events and metrics into the journals."""
        self.counts = run.do(run.ledger.counts())
        for event in run.do(run.ledger.events(self._noted)):
            self._noted = event["number"]
            self.events.write(**event)
        self._tell("align")
        for record in run.do(run.ledger.progress(self._step)):
            self._step = record["step"]
            line = {**record, "attempt": self.plan.attempt}
            self.metrics.append(line)
            self.progress.step(line)
            for alarm in self.monitors.see(line):
                self.alarms.append(asdict(alarm))
                self.events.write("alarm", **asdict(alarm))
                if self.settings.monitors.action == "stop":
                    raise RunFailed(alarm.text)

    def _tell(self, phase: str) -> None:
        """What `plumbline status` shows; there is no fleet."""
        status = {
            "name": self.settings.name,
            "phase": phase,
            "attempt": self.plan.attempt,
            "step": self._step,
            "steps": self.settings.learner.steps,
            "leases": {"counts": self.counts},
            "newest": self.run.generator.version if self.run else -1,
            "alarms": self.alarms,
            "fleet": {"pools": {}, "members": []},
        }
        write_status(self.plan.run_dir, status)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self.progress.stage(name)
        self._tell(name)
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 2)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def received(signum: int, frame: Any) -> None:
            if self.signum is not None:
                print("plumbline: second signal, exiting at once", file=sys.stderr, flush=True)
                os._exit(128 + signum)
            self.signum = signum
            self.progress.stage("stopping before the next step")
            if self.run is not None:
                self.run.stopped = True

        usual = {signum: signal.signal(signum, received) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in usual.items():
                signal.signal(signum, handler)


class KeptPorts(LocalPorts):
    """Brings into the journals what happened, before anything is built on it."""

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._kept = run

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        super().trained(attempt, step, metrics)
        self._kept.owner.note(self._kept)

    def snapshot(self, step: int) -> Mapping[str, Any]:
        made = super().snapshot(step)
        self._kept.owner.note(self._kept)
        return made

    def publish(self, version: WeightVersion) -> None:
        super().publish(version)
        self._kept.owner.note(self._kept)
        proof = self._kept.proofs[-1]
        self._kept.owner.events.write("proof", **asdict(proof), holds=proof.holds)


@dataclass
class KeptLoop(LocalLoop):
    """Adds to each manifest what only this process knows. `lately`: see `Scorer.lately`, as plain data."""

    lately: Callable[[], Any] = tuple

    def _facts(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        return {KEY: fingerprint(self.learner, ledger), LATELY: self.lately()}


class KeptRun(Run):
    """A run with a folder, which may begin at one of its checkpoints."""

    loop_type, ports_type = KeptLoop, KeptPorts

    def __init__(self, owner: Aligned) -> None:
        self.owner = owner
        plan = owner.plan
        super().__init__(plan.settings, plan.recipe, source=plan.source, plan=plan)
        assert isinstance(self.loop, KeptLoop)
        self.loop.lately = self._lately
        if plan.resumed is not None:
            manifest = json.loads((plan.resumed / MANIFEST).read_text(encoding="utf-8"))
            self.scorer.remember(ROLLOUTS.validate_python(manifest.get(LATELY, ())))

    def _lately(self) -> Any:
        """Only for a recipe that asks for them: they are many words."""
        asked = any(isinstance(step, Foreign) for step in steps_of(self.recipe))
        return ROLLOUTS.dump_python(self.scorer.lately if asked else (), mode="json", fallback=str)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: torch with one thread, and no kernel that is free to choose."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
