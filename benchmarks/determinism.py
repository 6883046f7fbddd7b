"""Kills deterministic runs at random points, resumes them, and compares them with one never killed.

    python -m benchmarks.determinism                       # 17 forked and 3 started processes
    python -m benchmarks.determinism --forked 4 --started 1 --json FILE

Every kill is a SIGKILL. A *forked* process is a copy of this one, which has imported everything and computed
nothing; it kills itself at a point that was drawn: before or after a call between two parts of the run, or
where it is about to change a file of its run. A *started* process runs in an interpreter of its own, with its
own hash seed, and is stopped from outside, found in the state that was drawn, and killed.

Equal are, at every step that was committed: SHA-256 of weights, optimizer, statistics, random states and
logical ledger; the model's file; and the log of what was trained, row by row.
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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_points import Points, install

FOLDER = Path("runs/determinism")
STEPS, EVERY = 6, 2
COMMON = (
    "deterministic=true",
    f"learner.steps={STEPS}",
    "learner.groups_per_step=4",
    "learner.warmup_steps=2",
    "learner.lr=3e-4",
    f"checkpoint.every={EVERY}",
    f"checkpoint.keep={STEPS}",
    "evaluation.scenes=0",
    "evaluation.questions=0",
    "method.samples=4",
)
# All weights; an adapter, surveyed prompts, replay; stages with renewed references; answers to other prompts.
ARMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "replay": (
        "recipe=dpo",
        "learner.lora.rank=4",
        "learner.lr=3e-3",
        "method.uses=2",
        "method.replay=0.25",
        "method.order=easy_to_hard",
        "method.difficulty=entropy",
    ),
    "stages": ("recipe=curri_dpo",),
    "foreign": ("recipe=kto",),
}
DEADLINE_S = 240.0  # of one process
POLL_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One run that was killed, resumed and compared."""

    arm: str
    how: str  # "forked" or "started"
    point: str
    resumed_from: int  # step; 0: nothing was committed yet
    equal: bool
    different: tuple[str, ...]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill deterministic runs, resume them, compare them.")
    parser.add_argument("--forked", type=int, default=17, help="forked processes to kill")
    parser.add_argument("--started", type=int, default=3, help="processes of their own to kill")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    kills = list(bench(given.arms, given.forked, given.started, given.seed, given.output.absolute()))
    failed = [kill for kill in kills if not kill.equal]
    print(f"{len(kills) - len(failed)} of {len(kills)} resumed runs are equal to the uninterrupted one")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(kill) for kill in kills], indent=2) + "\n")
    return 1 if failed or not kills else 0


def bench(arms: Sequence[str], forked: int, started: int, seed: int, output: Path) -> Iterator[Kill]:
    """All kills, spread over the arms in turns."""
    preload()
    shutil.rmtree(output, ignore_errors=True)
    drawn = random.Random(seed)
    points: dict[str, Points] = {}
    for arm in arms:
        points[arm] = reference(arm, output)
    for number in range(forked + started):
        arm = arms[number % len(arms)]
        run_dir = output / f"{arm}-{number}"
        began = time.perf_counter()
        if number < forked:
            how, point = "forked", killed_inside(arm, run_dir, *points[arm].draw(drawn))
        else:
            how, point = "started", killed_outside(arm, run_dir, drawn)
        resumed_from = max(steps(run_dir), default=0)
        resume(arm, run_dir, in_fork=how == "forked")
        different = tuple(differences(output / arm, run_dir))
        seconds = round(time.perf_counter() - began, 1)
        kill = Kill(
            arm=arm,
            how=how,
            point=point,
            resumed_from=resumed_from,
            equal=not different,
            different=different,
            seconds=seconds,
        )
        said = "equal" if kill.equal else f"DIFFERENT: {'; '.join(different)}"
        print(f"{arm:8} {how:8} {point:48} resumed from {resumed_from}: {said}", flush=True)
        yield kill


# -- runs ---------------------------------------------------------------------------------------------------


def overrides(arm: str, run_dir: Path) -> list[str]:
    # Group ids contain the run's name, so that all runs of an arm have one.
    return [*COMMON, *ARMS[arm], "name=run", f"output={run_dir.parent}"]


def train(arm: str, run_dir: Path, resume: bool) -> None:
    """As `plumbline align` does, in a folder of the caller's choice."""
    from actors.run import align
    from pipelines.settings import load

    align(load(None, overrides(arm, run_dir)), run_dir=run_dir, resume=resume)


def reference(arm: str, output: Path) -> Points:
    """The run that nobody interrupts; the points that it passed."""
    seen = output / f"{arm}.points.json"

    def work() -> None:
        install(output / arm, lambda point: passed.append(point))
        train(arm, output / arm, resume=False)
        seen.write_text(json.dumps(passed))

    passed: list[str] = []
    output.mkdir(parents=True, exist_ok=True)
    status = forked(work, output / f"{arm}.log")
    if status != 0:
        raise RuntimeError(f"the uninterrupted run of {arm} ended with {status}: see {output / arm}.log")
    return Points(tuple(json.loads(seen.read_text())))


def killed_inside(arm: str, run_dir: Path, point: str, occurrence: int) -> str:
    """A forked run that kills itself when it passes `point` for the `occurrence`-th time."""
    here = f"{point} #{occurrence}"
    witness = run_dir.with_suffix(".killed")

    def work() -> None:
        left = occurrence

        def visit(passing: str) -> None:
            nonlocal left
            left -= passing == point
            if left == 0:
                witness.write_text(here)
                os.kill(os.getpid(), signal.SIGKILL)

        install(run_dir, visit)
        train(arm, run_dir, resume=False)

    status = forked(work, run_dir.with_suffix(".log"))
    if status != -signal.SIGKILL or witness.read_text() != here:
        raise RuntimeError(f"{arm} should have been killed at {here}, but ended with {status}")
    return here


def killed_outside(arm: str, run_dir: Path, drawn: random.Random) -> str:
    """A run of its own that is killed in a state that was drawn, and found with the process stopped."""
    step = drawn.randrange(1, STEPS)
    commit = (step // EVERY + 1) * EVERY
    states: list[tuple[str, Callable[[], bool]]] = [
        (f"while step {commit} is committed", lambda: writing(run_dir, commit)),
        (f"after step {step}", lambda: trained(run_dir) == step),
    ]
    name, holds = drawn.choice(states)
    process = started(arm, run_dir, resume=False)
    until = time.monotonic() + DEADLINE_S
    try:
        while process.poll() is None and time.monotonic() < until:
            time.sleep(POLL_S)
            if not holds():
                continue
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            if holds():
                process.kill()
                process.wait()
                return name
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    raise RuntimeError(f"{arm} was not found {name}: see {run_dir.with_suffix('.log')}")


def resume(arm: str, run_dir: Path, *, in_fork: bool) -> None:
    """To the end; a run that committed nothing starts anew."""
    again = bool(steps(run_dir))
    if not again:
        shutil.rmtree(run_dir, ignore_errors=True)
    if in_fork:
        status = forked(lambda: train(arm, run_dir, again), run_dir.with_suffix(".log"))
    else:
        status = started(arm, run_dir, resume=again).wait(DEADLINE_S)
    if status != 0:
        raise RuntimeError(f"{arm} did not resume: status {status}, see {run_dir.with_suffix('.log')}")


# -- processes ----------------------------------------------------------------------------------------------


def preload() -> None:
    """What every run imports, so that a fork need not."""
    import deepspeed
    import peft
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl

    import actors.run

    assert deepspeed and peft and transformers and actors


def forked(work: Callable[[], None], log: Path) -> int:
    """Exit status of a copy of this process that does `work`; negative: the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    until = time.monotonic() + DEADLINE_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a run took more than {DEADLINE_S:g} s: see {log}")
        time.sleep(0.01)


def started(arm: str, run_dir: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    """A run in an interpreter of its own."""
    call = f"from benchmarks.determinism import train, Path; train({arm!r}, Path({str(run_dir)!r}), {resume})"
    with run_dir.with_suffix(".log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", call], stdout=log, stderr=log)


# -- what is on disk ----------------------------------------------------------------------------------------


def steps(run_dir: Path) -> list[int]:
    """Committed steps."""
    folders = (run_dir / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in folders)


def writing(run_dir: Path, step: int) -> bool:
    """A checkpoint is being written, and is not there yet."""
    return bool(list((run_dir / "checkpoints").glob(f".step-{step}.*"))) and step not in steps(run_dir)


def trained(run_dir: Path) -> int:
    """The newest step in metrics.jsonl."""
    from pipelines.journal import read_lines

    return max((int(line["step"]) for line in read_lines(run_dir / "metrics.jsonl")), default=0)


def differences(expected: Path, got: Path) -> Iterator[str]:
    """What is not equal in two finished runs."""
    from actors.fingerprint import KEY, logical

    if steps(expected) != steps(got) or max(steps(got)) != STEPS:
        yield f"committed steps {steps(got)}, expected {steps(expected)}"
        return
    for step in steps(expected):
        one, other = manifest(expected, step), manifest(got, step)
        for part, digest in one[KEY].items():
            if other[KEY][part] != digest:
                yield f"{part} of step {step}"
        if logical(one["ledger"]) != logical(other["ledger"]):
            yield f"the ledger of step {step}"
        if one["files"]["model.safetensors"] != other["files"]["model.safetensors"]:
            yield f"model.safetensors of step {step}"
    for path in sorted((expected / "comparisons").iterdir()):
        if rows(path) != rows(got / "comparisons" / path.name):
            yield f"comparisons/{path.name}"


def manifest(run_dir: Path, step: int) -> dict[str, Any]:
    from actors.checkpoints import verify

    return dict(verify(run_dir / "checkpoints" / f"step-{step}").manifest)


def rows(path: Path) -> list[dict[str, Any]]:
    """Trained comparisons of one step, without the attempt that trained them."""
    import pyarrow.parquet as pq

    volatile = ("attempt", "version_digest")
    found = pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if name not in volatile} for row in found]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started; the mode itself sets torch's
    sys.exit(main())
