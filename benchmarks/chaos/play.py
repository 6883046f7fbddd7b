"""One protocol run under faults: starts its driver, strikes, restarts what an operator would, and judges."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors import checkpoints
from benchmarks.chaos.beacon import STACKS, living, started_at
from benchmarks.chaos.catalogue import FAULTS
from benchmarks.chaos.driver import Case
from benchmarks.chaos.faults import (
    POLL_S,
    Fault,
    Strike,
    anything,
    attempt,
    flip_a_byte,
    proceed,
    require_death,
    strike,
)
from benchmarks.chaos.light import ENOUGH
from benchmarks.chaos.machines import Machines
from benchmarks.chaos.played import Played
from benchmarks.chaos.recount import lines, recount
from pipelines.journal import read_lines

LIMIT_S = 60.0  # a fault is detected, and a run ends, within this
SUCCESSION_S = 20.0  # until a successor comes into the state
PATIENCE_S = 1.0  # for a state to come up, in a mixed schedule
AHEAD = 4
MORE = 60  # prompts that a run still gets after the last strike
# Ends that name a role and a cause; the run is resumed, and they are listed in the result.
NAMED = ("failed: RunFailed: ", "failed: RoleFailed: ")
# By SIGTERM: the run's own handler, Ray's, which is in charge until the run's is installed, and nobody's: a
# driver that is still importing, or is done.
STOPPED = (128 + signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM)
FLEET_ROLES = ("generator", "scorer", "perturber")


class Hang(Exception):
    """Nothing moved for `LIMIT_S`; the stacks are in the run's folder."""


class Play:
    """`machines` may be replaced: a lost head needs a new cluster."""

    def __init__(self, case: Case, machines: Machines, seed: int) -> None:
        self.case, self.machines, self.run_dir = case, machines, case.world.run_dir
        self.chance = random.Random(seed)
        self.played = Played(seed)
        self._driver: subprocess.Popen[bytes] | None = None
        self._moved = time.monotonic()
        self._size = -1

    # -- the script -----------------------------------------------------------------------------------------

    def one_by_one(self, names: Sequence[str], patience_s: float = 15.0) -> Played:
        """Strike each fault once the run has recovered from the one before."""
        began = time.monotonic()
        self.case.write()
        with self._whole_run(began):
            self._start()
            self._await_trained(began)
            for name in names:
                made = self._strike_in_time(FAULTS[name], patience_s)
                if made is None:
                    self.played.missed.append(name)
                    continue
                self.played.strikes.append(made)
                self._await_trained(made.at)
        return self.played

    def during(self, work: Callable[[], None]) -> Played:
        """Do `work` while the run goes on undisturbed."""
        began = time.monotonic()
        self.case.write()
        with self._whole_run(began):
            self._start()
            self._await_trained(began)
            work()
        return self.played

    def mixed(self, names: Sequence[str], gap_s: float, seconds: float) -> Played:
        """Strike for `seconds` at random moments, `gap_s` apart on average, whatever is being recovered.

        Of the next few faults of the schedule the one whose state comes up first is struck first.
        """
        waiting = [FAULTS[name] for name in names]
        began = time.monotonic()
        self.case.write()
        with self._whole_run(began):
            self._start()
            self._await_trained(began)
            while waiting and time.monotonic() < began + seconds:
                self._keep_driver()
                if self._strike_one_of(waiting):
                    time.sleep(self.chance.expovariate(1 / gap_s))
                self._require_movement()
        return self.played

    def _strike_one_of(self, waiting: list[Fault]) -> bool:
        """Strikes and removes one of the first `AHEAD`; gives up the first when none can be struck."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for fault in waiting[:AHEAD]:
                own = fault.act in ("kill", "freeze", "order")
                if not own and fault is not waiting[0]:
                    continue  # of the driver, a node...: in its turn
                made = self._strike(fault, 0.0) if own else self._strike(fault, PATIENCE_S)
                if made is not None:
                    waiting.remove(fault)
                    self.played.strikes.append(made)
                    return True
            time.sleep(POLL_S)
        self.played.missed.append(waiting.pop(0).name)
        return False

    def every(self, period_s: float, seconds: float, names: Sequence[str]) -> Played:
        """Strike a fault each `period_s`, drawn from `names`, for `seconds` from the first trained group on.

        Without names nothing is struck: a clean run of the same length.
        """
        began = time.monotonic()
        self.case.write()
        with self._whole_run(began):
            self._start()
            first = self._await_trained(began)
            self.played.window = (first, first + seconds)
            due = first + period_s if names else first + seconds
            while time.monotonic() < first + seconds:
                self._keep_driver()
                if time.monotonic() >= due and (made := self._strike(self._drawn(names), 2.0)) is not None:
                    self.played.strikes.append(made)
                    due += period_s
                self._require_movement()
                time.sleep(0.02)
        return self.played

    def _drawn(self, names: Sequence[str]) -> Fault:
        return FAULTS[self.chance.choice(list(names))]

    @contextmanager
    def _whole_run(self, began: float) -> Iterator[None]:
        """Around all strikes: the run is brought to its end, within the limit, and judged."""
        try:
            yield
            self._finish()
        except Hang as hang:
            self.played.problems.append(str(hang))
        finally:
            self._end_driver()
            self.played.seconds = time.monotonic() - began
        self._judge()

    def _finish(self) -> None:
        """Let the data end, and the run with it."""
        seen = [int(line["position"]) for line in lines(self.run_dir) if line["event"] == "trained"]
        (self.run_dir / f"{ENOUGH}.new").write_text(str(max(seen, default=0) + MORE))
        (self.run_dir / f"{ENOUGH}.new").rename(self.run_dir / ENOUGH)
        until = time.monotonic() + LIMIT_S
        while not self._keep_driver():
            if time.monotonic() > until:
                raise self._hang(f"the run did not end within {LIMIT_S:g} s of its last fault")
            time.sleep(0.02)

    # -- the driver -----------------------------------------------------------------------------------------

    def _start(self, resume: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.chaos.driver", str(self.run_dir), self.machines.address]
        with (self.run_dir / "driver.log").open("ab") as log:
            self._driver = subprocess.Popen(
                command + (["--resume"] if resume else []),
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def _keep_driver(self) -> bool:
        """Start the driver again if it ended before the run did, as an operator would. True: all is done."""
        assert self._driver is not None
        code = self._driver.poll()
        if code is None:
            return False
        if code == 0:
            return True
        status = next((o["status"] for o in reversed(self._outcomes()) if o["event"] == "ended"), "")
        self.played.ends.append(status if code == 3 else f"exit {code}")
        if code == 3 and not status.startswith(NAMED):
            self.played.problems.append(f"the run ended with {status[:500]}")
        elif code not in (3, *STOPPED, -signal.SIGKILL):
            self.played.problems.append(f"the driver ended with exit code {code}; see driver.log")
        self._start(resume=True)
        return False

    def _outcomes(self) -> list[dict[str, Any]]:
        return list(read_lines(self.run_dir / "outcomes.jsonl"))

    def _end_driver(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()

    # -- strikes --------------------------------------------------------------------------------------------

    def _strike_in_time(self, fault: Fault, patience_s: float) -> Strike | None:
        """A driver that was just started again cannot be struck before its run has begun."""
        until = time.monotonic() + LIMIT_S
        while True:
            self._keep_driver()
            made = self._strike(fault, patience_s)
            if made is not None or fault.act != "driver" or time.monotonic() > until:
                return made
            time.sleep(0.05)

    def _strike(self, fault: Fault, patience_s: float) -> Strike | None:
        if fault.act == "driver":
            return self._strike_driver(fault)
        if fault.act == "node":
            return self._strike_node(fault)
        if fault.act == "head":
            return self._strike_head(fault)
        if fault.act == "flip":
            return self._strike_checkpoint(fault, patience_s)
        if fault.act == "again":
            return self._strike_successor(fault)
        if patience_s:
            return strike(self.run_dir, fault, self.chance, patience_s)
        return attempt(self.run_dir, fault, self.chance, time.monotonic() + PATIENCE_S)

    def _made(self, fault: Fault, pid: int, victims: Sequence[int] = ()) -> Strike:
        now, wall = time.monotonic(), time.time()
        return Strike(
            fault=fault.name, role=fault.role, pid=pid, state={}, at=now, wall=wall, victims=[*victims]
        )

    def _strike_driver(self, fault: Fault) -> Strike | None:
        driver = self._driver
        assert driver is not None
        began = [o for o in self._outcomes() if o["event"] == "began" and o["pid"] == driver.pid]
        if not began or driver.poll() is not None:
            return None
        made = self._made(fault, driver.pid, [driver.pid])
        for number, signum in enumerate(fault.signals):
            if number:
                time.sleep(self.chance.uniform(0.0, 1.5))
            if driver.poll() is None:
                driver.send_signal(signum)
        grace_s = float(self.case.settings["stop_grace_s"]) + 15.0
        try:
            driver.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            raise self._hang(f"the driver did not end within {grace_s:g} s of {fault.name}") from None
        return made

    def _strike_node(self, fault: Fault) -> Strike | None:
        nodes = self.machines.workers
        if not nodes:
            return None
        made = self._made(fault, 0)
        made.victims = self.machines.remove(self.chance.choice(nodes))
        self.machines.add()
        return made

    def _strike_head(self, fault: Fault) -> Strike | None:
        """The cluster is gone; whoever runs it starts another, and the run with --resume."""
        assert self._driver is not None
        made = self._made(fault, 0)
        self.machines.stop()
        try:
            self._driver.wait(timeout=LIMIT_S)
            self.played.ends.append(f"head lost: exit {self._driver.returncode}")
        except subprocess.TimeoutExpired:
            self.played.problems.append(f"the driver outlived its cluster by {LIMIT_S:g} s")
            self._end_driver()
        self.machines = Machines()
        self._start(resume=True)
        return made

    def _strike_checkpoint(self, fault: Fault, patience_s: float) -> Strike | None:
        """A flipped byte alone changes nothing, so the learner is killed as well and has to load."""
        until = time.monotonic() + patience_s
        while (file := flip_a_byte(checkpoints.root(self.run_dir), self.chance)) is None:
            if time.monotonic() > until:
                return None
            time.sleep(0.01)
        made = strike(self.run_dir, FAULTS["rank-backward"], self.chance, patience_s)
        if made is None:
            return None
        made.fault, made.role, made.state = fault.name, fault.role, {file.name: 1}
        return made

    def _strike_successor(self, fault: Fault) -> Strike | None:
        """Kill one of the role, whatever it does, and then who takes over, in the state of the fault."""
        first = replace(fault, met=anything, act="kill")
        if strike(self.run_dir, first, self.chance, PATIENCE_S) is None:
            return None
        return strike(self.run_dir, replace(fault, act="kill"), self.chance, SUCCESSION_S)

    # -- time -----------------------------------------------------------------------------------------------

    def _trained_after(self, at: float) -> float | None:
        """When the first group after `at` was trained."""
        found = [line["at"] for line in lines(self.run_dir) if line["event"] == "trained" and line["at"] > at]
        return min(found, default=None)

    def _await_trained(self, at: float) -> float:
        """When the first group after `at` was trained."""
        until = time.monotonic() + LIMIT_S
        while (trained := self._trained_after(at)) is None:
            if time.monotonic() > until:
                raise self._hang(f"nothing was trained for {LIMIT_S:g} s")
            self._keep_driver()
            time.sleep(0.05)
        return trained

    def _require_movement(self) -> None:
        """The ranks' logs grow, or it is a hang."""
        size = sum(path.stat().st_size for path in (self.run_dir / "trained").glob("*.jsonl"))
        if size != self._size:
            self._size, self._moved = size, time.monotonic()
        elif time.monotonic() - self._moved > LIMIT_S:
            raise self._hang(f"nothing was trained for {LIMIT_S:g} s")

    def _hang(self, what: str) -> Hang:
        """Have everybody write down where they are."""
        driver = self._driver
        if driver is not None and driver.poll() is None:
            driver.send_signal(signal.SIGUSR2)
            time.sleep(0.3)
            driver.send_signal(signal.SIGUSR1)
        for seen in living(self.run_dir):
            with suppress(ProcessLookupError):
                os.kill(seen.pid, signal.SIGUSR1)
        time.sleep(0.5)
        return Hang(f"{what}; stacks: {self.run_dir / STACKS} and driver.log")

    # -- judgement ------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        played = self.played
        until = time.monotonic() + 10.0
        while (left := living(self.run_dir)) and time.monotonic() < until:
            time.sleep(0.05)
        for seen in left:  # named by the recount; nothing may outlive the harness
            proceed(seen.pid)
        finished = any(o["event"] == "ended" and o["status"] == "finished" for o in self._outcomes())
        played.count = recount(self.run_dir, finished=finished)
        played.problems += played.count.problems
        for seen in left:
            if started_at(seen.pid) == seen.born:
                os.kill(seen.pid, signal.SIGKILL)
                require_death(seen.pid, seen.born)
        events = list(read_lines(self.run_dir / "events.jsonl"))
        trained = sorted(line["at"] for line in lines(self.run_dir) if line["event"] == "trained")
        for made in played.strikes:
            later = bisect_right(trained, made.at)
            made.recovered_s = trained[later] - made.at if later < len(trained) else None
            made.detected_s = self._detected(made, events)
            if FAULTS[made.fault].kills and made.detected_s is None:
                played.problems.append(f"nobody noticed {made.fault} (pid {made.pid})")
            elif (made.detected_s or 0.0) > LIMIT_S:
                played.problems.append(f"{made.fault} was noticed after {made.detected_s:.0f} s")

    def _detected(self, made: Strike, events: Sequence[dict[str, Any]]) -> float | None:
        """Seconds to the event that names the loss; a driver's death is seen by whoever started it."""
        fault = FAULTS[made.fault]
        if fault.act in ("driver", "head"):
            return 0.0
        at = [e["at"] for e in events if self._names(made, e) and e["at"] >= made.wall - 0.01]
        later = [
            o["at"] for o in self._outcomes() if o["event"] in ("began", "ended") and o["at"] > made.wall
        ]
        return min([*at, *later], default=made.wall) - made.wall if at or later else None

    def _names(self, made: Strike, event: dict[str, Any]) -> bool:
        kind = event["event"]
        if made.role in FLEET_ROLES:
            return kind == "member" and event["state"] == "gone" and event["pid"] in made.victims
        if made.role == "node":
            return kind == "attempt_failed" or (
                kind == "member" and event["state"] == "gone" and event["pid"] in made.victims
            )
        return kind == "attempt_failed"
