"""Kills of real processes: vLLM generators, DeepSpeed ranks and all that stands between them.

`plumbline align` runs on a cluster of its own; victims are found through Ray's tables (class, pid, alive) and
the run's `status.json` (what the fleet and the ledger say of them), struck one after the other, each after
the run has trained a step again. What was trained is counted from the Parquet log, and by the auditor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.beacon import started_at
from benchmarks.chaos.counted import count_real
from benchmarks.chaos.faults import require_death, stopped
from benchmarks.chaos.machines import LOOPBACK, ROOT, Machines
from benchmarks.chaos.played import replaced, write
from pipelines.journal import read_lines

CLASSES = {
    "generator": "Generator",
    "scorer": "Scorer",
    "perturber": "Perturber",
    "ledger": "Ledger",
    "publisher": "Publisher",
    "prompts": "PromptStream",
    "trainer": "TrainerHost",
    "rank": "RayTrainWorker",
}
FLEET = ("generator", "scorer", "perturber")
# 25 kills: role and signal.
SCHEDULE: tuple[tuple[str, str], ...] = (
    *[("generator", "SIGKILL")] * 5,
    *[("generator", "SIGSTOP")] * 2,
    *[("scorer", "SIGKILL")] * 2,
    ("scorer", "SIGSTOP"),
    *[("perturber", "SIGKILL")] * 2,
    *[("rank", "SIGKILL")] * 4,
    ("rank", "SIGSTOP"),
    *[("ledger", "SIGKILL")] * 2,
    ("publisher", "SIGKILL"),
    ("prompts", "SIGKILL"),
    ("trainer", "SIGKILL"),
    *[("driver", "SIGKILL")] * 2,
    ("driver", "SIGTERM"),
)
OVERRIDES = (
    "name=real",
    "rollout.generators=2",
    "rollout.scorers=2",
    "rollout.perturbers=2",
    "rollout.max_tokens=32",
    "rollout.health_timeout_s=10",
    "rollout.progress_timeout_s=30",
    "learner.workers=2",
    "learner.steps=100000",
    "learner.groups_per_step=8",
    "learner.progress_timeout_s=60",
    "learner.collective_timeout_s=60",
    "sync.max_lag=2",
    "checkpoint.every=2",
    "checkpoint.keep=3",
    "evaluation.scenes=0",
    "evaluation.questions=0",
    "recovery.max_restarts=5",
    "stop_grace_s=60",
)
START_S = 420.0  # engines and ranks, on two cores


@dataclass(kw_only=True)
class Kill:
    """One kill and what followed. Times in seconds after it."""

    role: str
    signal: str
    pid: int
    seen: dict[str, Any]  # what Ray and the run said of the victim right before
    at: float
    detected_s: float | None = None
    recovered_s: float | None = None  # next trained step, see `_recover`
    serving_s: float | None = None  # of a pool's worker: another one serves in its place


@dataclass
class RealRun:
    """A run of the real stack under kills."""

    out: Path
    extra: Sequence[str]
    deadline_s: float
    seed: int
    kills: list[Kill] = field(default_factory=list[Kill])
    problems: list[str] = field(default_factory=list[str])
    driver: subprocess.Popen[bytes] | None = None
    address: str = ""

    @property
    def folder(self) -> Path:
        return self.out / "real"

    def play(self, schedule: Sequence[tuple[str, str]], minutes: float) -> None:
        """Strike in a drawn order, for so long at most, and count."""
        chance = random.Random(self.seed)
        order = chance.sample(list(schedule), len(schedule))
        until = time.monotonic() + 60.0 * minutes

        def kills() -> None:
            for number, (role, name) in enumerate(order):
                if time.monotonic() > until:
                    self.problems.append(f"{number} of {len(order)} kills in {minutes:g} minutes")
                    return
                kill = self._kill(role, name, chance)
                if kill is None:
                    self.problems.append(f"no living {role} for kill {number + 1}")
                    continue
                self.kills.append(kill)
                self._recover(kill)
                print(f"{number + 1:>2} {role} {name}: {kill.recovered_s} s, {kill.seen}", flush=True)
                time.sleep(chance.uniform(0.0, 3.0))

        found = self.during(kills)
        for kill in self.kills:
            took = replaced(self._events(), kill.role, kill.at)
            kill.serving_s = None if took is None else round(took, 2)
        write(self.out / "real.json", self.to_json() | {"count": found})

    def during(self, work: Callable[[], None]) -> dict[str, Any]:
        """Start the run, do `work` once it trains, stop it with SIGTERM, and count."""
        import ray

        shutil.rmtree(self.folder, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        machines = Machines(workers=0, cpus=16, store_bytes=512 * 2**20)
        self.address = machines.address
        try:
            ray.init(address=self.address, log_to_driver=False, _node_ip_address=LOOPBACK)
            self._start()
            self._await_step(time.time(), time.time() + START_S)
            work()
            self._stop()
            ray.shutdown()
        finally:
            if self.driver is not None and self.driver.poll() is None:
                self.driver.kill()
            machines.stop()
        found = count_real(self.folder)
        self.problems += found["problems"]
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "kills": [vars(kill) for kill in self.kills],
            "problems": self.problems,
            "deadline_s": self.deadline_s,
            "seed": self.seed,
        }

    # -- the driver -----------------------------------------------------------------------------------------

    def _start(self, resume: bool = False) -> None:
        overrides = [
            *OVERRIDES,
            f"output={self.out}",
            f"ray_address={self.address}",
            f"recovery.deadline_s={self.deadline_s:g}",
        ]
        command = [sys.executable, "-m", "pipelines.cli", "align", *overrides, *self.extra]
        with (self.out / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command + (["--resume"] if resume else []), stdout=log, stderr=log, cwd=ROOT
            )

    def _stop(self) -> None:
        assert self.driver is not None
        self.driver.send_signal(signal.SIGTERM)
        code = self.driver.wait(timeout=150)
        if code != 128 + signal.SIGTERM:
            self.problems.append(f"the driver ended with {code} after SIGTERM; see {self.out / 'driver.log'}")

    # -- kills ----------------------------------------------------------------------------------------------

    def _kill(self, role: str, name: str, chance: random.Random) -> Kill | None:
        until = time.monotonic() + 120.0
        while time.monotonic() < until:
            victims = self._victims(role)
            if victims:
                pid, seen = chance.choice(victims)
                born = started_at(pid)
                if born is not None:
                    return self._strike(role, name, pid, born, seen)
            time.sleep(0.5)
        return None

    def _strike(self, role: str, name: str, pid: int, born: int, seen: dict[str, Any]) -> Kill:
        kill = Kill(role=role, signal=name, pid=pid, seen=seen, at=time.time())
        if name == "SIGSTOP":
            if not stopped(pid, born):
                raise RuntimeError(f"{role} {pid} did not stop")
            return kill
        os.kill(pid, getattr(signal, name))
        if role == "driver":
            assert self.driver is not None
            self.driver.wait(timeout=150)
        else:
            require_death(pid, born)
        return kill

    def _victims(self, role: str) -> list[tuple[int, dict[str, Any]]]:
        """Pids in the state that they are to be struck in, with what was seen."""
        status = self._status()
        counts = status.get("leases", {}).get("counts", {})
        doing = {"step": status.get("step"), "sealed": counts.get("sealed"), "leased": counts.get("leased")}
        if role == "driver":
            assert self.driver is not None
            return [(self.driver.pid, doing)] if self.driver.poll() is None else []
        alive = actors_of(CLASSES[role])
        if role in FLEET:
            members = status.get("fleet", {}).get("members", [])
            serving = {m["pid"]: m for m in members if m["role"] == role and m["state"] == "serving"}
            keep = ("index", "version", "in_flight") if role == "generator" else ("index", "in_flight")
            found = [(pid, {key: serving[pid][key] for key in keep}) for pid in alive if pid in serving]
            return [one for one in found if one[1]["in_flight"]] or found  # rather one that is at work
        if role in ("rank", "trainer") and not counts.get("sealed"):
            return []  # a step is to be under training
        return [(pid, doing) for pid in alive]

    def _status(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads((self.folder / "status.json").read_text())
        return {}

    # -- recovery -------------------------------------------------------------------------------------------

    def _recover(self, kill: Kill) -> None:
        """Wait until the death is noticed, then for a step: of the run without its learner or ledger only one
        that comes later counts, since the step under way may still end; a pool's others train on."""
        noticed: float | None = time.time()
        if kill.role == "driver":
            self._start(resume=True)
        else:
            noticed = self._detected(kill)
        if noticed is None:
            self.problems.append(f"{kill.role} {kill.signal} (pid {kill.pid}): nobody noticed")
        else:
            kill.detected_s = round(noticed - kill.at, 2)
        since = kill.at if kill.role in FLEET or noticed is None else noticed
        trained = self._await_step(since, kill.at + self.deadline_s)
        if trained is None:
            self.problems.append(
                f"{kill.role} {kill.signal}: nothing was trained within {self.deadline_s:g} s"
            )
        else:
            kill.recovered_s = round(trained - kill.at, 2)

    def _await_step(self, after: float, until: float) -> float | None:
        """When the next step was trained, by the driver's journal."""

        def ends(event: dict[str, Any]) -> bool:
            return event["event"] == "stage_seconds" and "step" in event and event["at"] > after

        return self._told(ends, until)

    def _detected(self, kill: Kill) -> float | None:
        """When the driver's journal says so."""

        def names(event: dict[str, Any]) -> bool:
            if event["at"] < kill.at - 0.01:
                return False
            if kill.role in FLEET:
                return event["event"] == "member" and event["state"] == "gone" and event["pid"] == kill.pid
            return event["event"] == "attempt_failed"

        return self._told(names, kill.at + self.deadline_s)

    def _told(self, what: Callable[[dict[str, Any]], bool], until: float) -> float | None:
        """When the driver's journal first told it; None: not until then, or the driver ended before."""
        while True:
            over = time.time() > until or (self.driver is not None and self.driver.poll() is not None)
            if found := next((event["at"] for event in self._events() if what(event)), None):
                return found
            if over:
                return None
            time.sleep(0.25)

    def _events(self) -> list[dict[str, Any]]:
        with suppress(ValueError):  # in the middle of a line
            return list(read_lines(self.folder / "events.jsonl"))
        return []


def actors_of(kind: str) -> list[int]:
    """Pids of the living actors of a class, by Ray's own table."""
    from ray._private import state

    known: Any = state.actors()
    return [
        int(actor["Pid"])
        for actor in known.values()
        if actor.get("State") == "ALIVE" and actor.get("ActorClassName", "").split(".")[-1] == kind
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos real", description=__doc__)
    parser.add_argument("--kills", type=int, default=len(SCHEDULE))
    parser.add_argument("--roles", nargs="*", help="only kills of these roles")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=50.0, help="of kills, the start and the end not counted"
    )
    parser.add_argument("--deadline-s", type=float, default=300.0, help="recovery.deadline_s of the run")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    parser.add_argument("overrides", nargs="*", help="settings of the run, as `plumbline align` takes them")
    options = parser.parse_args(arguments)
    schedule = [kill for kill in SCHEDULE if not options.roles or kill[0] in options.roles]
    chosen = random.Random(options.seed).sample(schedule, min(options.kills, len(schedule)))
    run = RealRun(options.out.absolute(), options.overrides, options.deadline_s, options.seed)
    run.play(chosen, options.minutes)
    print(table(run))
    return 1 if run.problems else 0


def table(run: RealRun) -> str:
    head = f"{'role':<12}{'signal':<10}{'noticed s':>10}{'trained again s':>17}{'replaced s':>12}"
    lines = [head, "-" * len(head)]
    lines += [
        f"{k.role:<12}{k.signal:<10}{k.detected_s!s:>10}{k.recovered_s!s:>17}{k.serving_s or '-':>12}"
        for k in run.kills
    ]
    lines.append(f"{len(run.kills)} kills of real processes, recovery.deadline_s = {run.deadline_s:g}")
    return "\n".join([*lines, *(f"VIOLATION {problem}" for problem in run.problems)])
