"""One real run of the whole stack, shared by every test that reads what a run leaves behind.

Two learner ranks, two generators, a user's own reward and recipe, of two stages that train on comparisons
again; interrupted by Ctrl-C, resumed to its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Examples are the same in every run, and how long one takes says nothing: the machine is shared.
settings.register_profile("plumbline", deadline=None, derandomize=True)
settings.load_profile("plumbline")

ROOT = Path(__file__).parents[1]
# Tests that run side by side, a file at a time per core. All others start clusters, engines or servers, which
# want the machine to themselves.
TOGETHER = (
    "actors/learner",
    "actors/recipes",
    "actors/test_reward_model.py",
    "benchmarks/test_determinism.py",
    "pipelines",
)
STARTING = {"shared_run", "local_ray"}  # fixtures
STEPS = 10
DEADLINE_S = 420
OVERRIDES = (
    "name=shared",
    "reward=own_reward:value",
    "recipe=own_recipe:recipe",
    "rollout.generators=2",
    "rollout.max_tokens=32",
    "learner.workers=2",
    f"learner.steps={STEPS}",
    "learner.groups_per_step=7",  # odd: the ranks get shards of unequal size
    "learner.micro_batch=3",
    "checkpoint.every=4",
    "sync.transport=collective",
    "sync.bucket_mib=1",  # so that the small model makes several buckets
    "evaluation.scenes=24",
    "evaluation.questions=12",
)
OWN_REWARD = '''
"""A user's reward: right minus wrong mentions, from the row's own columns."""
from pipelines.worlds.glyphs import Glyphs


async def value(prompt, response, row):
    parts = Glyphs().verify(row, response)
    return parts["right"] - parts["wrong"]
'''
OWN_RECIPE = '''
"""Online DPO, every comparison twice and easy prompts first; then with some of it drawn again."""
from dataclasses import replace

from pipelines.recipe import ResetOptimizer
from pipelines.recipes import online_dpo
from pipelines.schedules import EasyToHard


def recipe():
    known = online_dpo.recipe()
    [stage] = known.stages
    first = replace(stage, uses=2, order=EasyToHard(samples=2), then=(ResetOptimizer(),))
    return replace(known, stages=(first, replace(stage, replay=0.25)))
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        apart = path.startswith("pipelines/launching") or not STARTING.isdisjoint(item.fixturenames)
        if path.startswith(TOGETHER) and not apart:
            item.add_marker(pytest.mark.together)


@dataclass(frozen=True)
class SharedRun:
    """A finished run and what its two commands said."""

    folder: Path
    interrupted_code: int
    interrupted_summary: dict
    step_at_signal: int
    resumed_code: int
    output: str
    orphans: tuple[str, ...]  # command lines of processes that outlived either command

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def newest_checkpoint(self) -> Path:
        steps = (self.folder / "checkpoints").glob("step-*")
        return max(steps, key=lambda path: int(path.name.split("-")[1]))


def command(folder: Path, *extra: str) -> list[str]:
    overrides = [*OVERRIDES, f"output={folder}"]
    return [sys.executable, "-m", "pipelines.cli", "align", *overrides, "--seed", "3", *extra]


def steps_recorded(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def processes_of(marker: str) -> tuple[str, ...]:
    """Command lines of living processes whose environment holds `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
        except OSError:
            continue
    return tuple(line for line in found if line)


def wait_until_gone(marker: str, deadline_s: float = 30) -> tuple[str, ...]:
    until = time.monotonic() + deadline_s
    while (left := processes_of(marker)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "own_reward.py").write_text(OWN_REWARD)
    (folder / "own_recipe.py").write_text(OWN_RECIPE)
    marker = f"PLUMBLINE_TEST_RUN={folder.name}-{os.getpid()}"
    name, value = marker.split("=")
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", name: value}
    run_dir = folder / "shared"
    log = folder / "log.txt"
    with log.open("w") as output:
        first = subprocess.Popen(command(folder), env=environment, cwd=ROOT, stdout=output, stderr=output)
        until = time.monotonic() + DEADLINE_S
        while steps_recorded(run_dir) < 3 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        at_signal = steps_recorded(run_dir)
        first.send_signal(signal.SIGINT)
        try:
            interrupted_code = first.wait(timeout=120)
        except subprocess.TimeoutExpired:
            first.kill()
            pytest.fail(f"the run did not end within 120 s of Ctrl-C:\n{log.read_text()[-4000:]}")
    if at_signal < 3:
        pytest.fail(
            f"the run did not reach step 3 (exit code {interrupted_code}):\n{log.read_text()[-4000:]}"
        )
    orphans = wait_until_gone(marker)
    interrupted = json.loads((run_dir / "summary.json").read_text())
    with log.open("a") as output:
        resumed = subprocess.run(
            command(folder, "--resume"),
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            timeout=DEADLINE_S,
        )
    if resumed.returncode != 0:
        pytest.fail(f"the resumed run ended with {resumed.returncode}:\n{log.read_text()[-4000:]}")
    return SharedRun(
        folder=run_dir,
        interrupted_code=interrupted_code,
        interrupted_summary=interrupted,
        step_at_signal=at_signal,
        resumed_code=resumed.returncode,
        output=log.read_text(),
        orphans=orphans + wait_until_gone(marker),
    )
