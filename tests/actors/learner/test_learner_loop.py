"""The loop against plain ports: order of its acts, versions, commits and what it logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from actors import checkpoints
from actors.learner import Learner
from actors.learner_loop import Loop
from pipelines.recipe import Extrapolate, Recipe, Refresh
from pipelines.settings import CheckpointSettings, LearnerSettings, Settings, SyncSettings
from pipelines.types import Canary, Shard, WeightVersion


class Ports:
    """Serves prepared steps and records every act."""

    def __init__(self, shards: Mapping[int, Shard]) -> None:
        self.shards = shards
        self.acts: list[str] = []
        self.versions: list[WeightVersion] = []
        self.tensors: list[Mapping[str, np.ndarray]] = []
        self.held: dict[str, np.ndarray] = {}
        self.metrics: list[Mapping[str, float]] = []

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        self.acts.append(f"pull {step}")
        return self.shards.get(step, Shard(step=step, stop=True))

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        self.acts.append(f"trained {step}")
        self.metrics.append(metrics)

    def snapshot(self, step: int) -> Mapping[str, Any]:
        self.acts.append(f"snapshot {step}")
        return {"trained": step}

    def hold(self, attempt: int, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        self.held |= tensors

    def publish(self, version: WeightVersion) -> None:
        self.acts.append(f"publish {version.number} of step {version.step}")
        self.versions.append(version)
        self.tensors.append(self.held)
        self.held = {}


SETTINGS = Settings(
    learner=LearnerSettings(zero_stage=2, micro_batch=2, warmup_steps=0, lr=1e-3),
    sync=SyncSettings(every=2),
    checkpoint=CheckpointSettings(every=2, keep=1),
)


@pytest.fixture(scope="module")
def shards(cases: ModuleType) -> dict[int, Shard]:
    groups = {step: (cases.group(2 * step), cases.group(2 * step + 1)) for step in (1, 2, 3)}
    return {step: Shard(step=step, stop=False, groups=pair, largest=2) for step, pair in groups.items()}


def _loop(
    model: Path,
    cases: ModuleType,
    ports: Ports,
    run_dir: Path,
    recipe: Recipe | None = None,
    settings: Settings = SETTINGS,
    **state: Any,
) -> Loop:
    group = cases.group(99)
    comparison = group.comparisons[0]
    canary = Canary(prompt=comparison.prompts[0], media=group.media, tokens=comparison.responses[0].tokens)
    return Loop(
        learner=Learner(model, settings.learner, recipe or cases.recipe(), seed=1),
        ports=ports,
        settings=settings,
        run_dir=run_dir,
        canaries=[canary],
        attempt=state.pop("attempt", 1),
        **state,
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model: Path, cases: ModuleType, shards: dict[int, Shard]
) -> tuple[Path, Ports, Loop]:
    """Three steps, then stop."""
    run_dir, ports = tmp_path_factory.mktemp("run"), Ports(shards)
    loop = _loop(model, cases, ports, run_dir)
    assert loop.run() == 3
    return run_dir, ports, loop


def test_acts_come_in_order(finished: tuple[Path, Ports, Loop]) -> None:
    assert finished[1].acts == [
        "publish 0 of step 0",
        "pull 1",
        "trained 1",
        "pull 2",
        "publish 1 of step 2",
        "trained 2",
        "snapshot 2",
        "pull 3",
        "trained 3",
        "pull 4",
        "publish 2 of step 3",  # the last weights reach the generators though 3 is no multiple of 2
        "snapshot 3",
    ]


def test_versions_describe_what_was_sent(finished: tuple[Path, Ports, Loop]) -> None:
    _, ports, loop = finished
    assert [version.number for version in ports.versions] == [0, 1, 2]
    for version, tensors in zip(ports.versions, ports.tensors, strict=True):
        assert dict(version.manifest) == loop.learner.manifest(tensors)
        assert len(version.canary) == 1 and not version.adapter
    assert len({version.canary for version in ports.versions}) == 3


def test_metrics_say_where_time_went(finished: tuple[Path, Ports, Loop]) -> None:
    first, second, third = finished[1].metrics
    assert {"seconds/wait", "seconds/forward_backward"} <= set(first)
    assert "seconds/publish" in second and "seconds/publish" not in third
    assert "seconds/commit" in third  # the commit of step 2 ended after its metrics had left
    assert first["lag_max"] == 0 and third["lag_max"] == 1  # groups of version 0 at published version 1
    json.dumps([first, second, third], allow_nan=False)


def test_every_trained_comparison_is_logged(finished: tuple[Path, Ports, Loop], cases: ModuleType) -> None:
    run_dir = finished[0]
    files = sorted((run_dir / "comparisons").iterdir())
    assert [file.name for file in files] == [f"step-0000{step}-rank-0.parquet" for step in (1, 2, 3)]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["group"] for row in rows] == [f"group-{seed}" for seed in range(2, 8)]
    row, group = rows[0], cases.group(2)
    clean, broken = group.media.values()
    assert (row["attempt"], row["step"], row["rank"]) == (1, 1, 0)
    assert (row["media_digest"], row["damaged_digest"]) == (clean.digest, broken.digest)
    assert json.loads(row["damage"]) == {"name": "noise", "params": {"strength": 1.0}, "seed": 2}
    assert row["prompt_text"] == "describe the image ."
    assert row["chosen"] == group.comparisons[0].responses[0].text
    assert row["rejected"] == group.comparisons[0].responses[1].text
    assert (row["score_chosen"], row["score_rejected"]) == (1.0, -1.0)
    assert json.loads(row["parts_chosen"]) == {"right": 2.0}
    assert row["margin_text"] is not None and row["margin_media"] is not None


def test_pictures_for_people_are_kept_of_the_first_step(
    finished: tuple[Path, Ports, Loop], cases: ModuleType
) -> None:
    from PIL import Image

    run_dir = finished[0]
    expected = {digest: media for seed in (2, 3) for digest, media in cases.group(seed).media.items()}
    assert {path.stem for path in (run_dir / "media").iterdir()} == set(expected)
    for digest, media in expected.items():
        assert np.array_equal(np.asarray(Image.open(run_dir / "media" / f"{digest}.png")), media.payload)


def test_the_last_checkpoint_holds_the_last_weights(finished: tuple[Path, Ports, Loop]) -> None:
    from safetensors.numpy import load_file

    run_dir, ports, _ = finished
    found = checkpoints.newest_verified(run_dir)
    assert found is not None and found.step == 3
    assert found.manifest["ledger"] == {"trained": 3}
    assert found.manifest["weight_version"] == 2
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-3"]  # keep=1
    stored = load_file(found.path / "model.safetensors")
    assert all(np.array_equal(stored[name], value) for name, value in ports.tensors[-1].items())


def test_a_resumed_attempt_repeats_what_was_lost(
    finished: tuple[Path, Ports, Loop],
    model: Path,
    cases: ModuleType,
    shards: dict[int, Shard],
    tmp_path: Path,
) -> None:
    """Interrupted after step 2, resumed with the same groups: the weights after step 3 are the same."""
    first = Ports({step: shards[step] for step in (1, 2)})
    _loop(model, cases, first, tmp_path).run()
    found = checkpoints.newest_verified(tmp_path)
    assert found is not None and found.step == 2
    second = Ports(shards)
    loop = _loop(model, cases, second, tmp_path, attempt=2, step=found.step)
    loop.learner.load(found.path)
    assert loop.run() == 3
    assert second.acts[:2] == ["publish 1 of step 2", "pull 3"]
    expected = finished[1].tensors[-1]
    assert all(np.array_equal(expected[name], value) for name, value in second.tensors[-1].items())
    again = checkpoints.newest_verified(tmp_path)
    assert again is not None and (again.step, again.manifest["attempt"]) == (3, 2)


def test_stopping_at_once_commits_nothing_new(model: Path, cases: ModuleType, tmp_path: Path) -> None:
    ports = Ports({})
    assert _loop(model, cases, ports, tmp_path).run() == 0
    assert ports.acts == ["publish 0 of step 0", "pull 1"]
    assert checkpoints.newest_verified(tmp_path) is None


# -- stages -------------------------------------------------------------------------------------------------

STAGED = SETTINGS.model_copy(
    update={
        "learner": SETTINGS.learner.model_copy(update={"steps": 3}),
        "checkpoint": CheckpointSettings(every=1, keep=3),
    }
)


@pytest.fixture(scope="module")
def staged(cases: ModuleType) -> Recipe:
    """Step 1 belongs to the first stage, steps 2 and 3 to the second, which extrapolates at its end."""
    first = cases.stage(cases.objective(), then=(Refresh(),))
    return cases.recipe(first, cases.stage(cases.objective(), share=2.0, then=(Extrapolate(alpha=0.5),)))


def test_a_stage_that_ends_publishes_once_and_hands_over(
    model: Path, cases: ModuleType, shards: dict[int, Shard], staged: Recipe, tmp_path: Path
) -> None:
    """`sync.every` is 2: steps 1 and 3 publish because a stage ends there, step 2 because it is due."""
    ports = Ports(shards)
    loop = _loop(model, cases, ports, tmp_path / "whole", staged, STAGED)
    assert loop.run() == 3
    published = [act for act in ports.acts if act.startswith("publish")]
    assert published == [f"publish {number} of step {number}" for number in range(4)]
    assert ports.metrics[1]["margin/text"] == pytest.approx(0, abs=1e-4)  # against the refreshed reference
    learner = loop.learner
    assert all(np.array_equal(ports.tensors[-1][name], value) for name, value in learner.export().items())

    second = Ports(shards)
    again = _loop(model, cases, second, tmp_path / "again", staged, STAGED, attempt=2, step=1)
    again.learner.load(tmp_path / "whole" / "checkpoints" / "step-1")
    assert again.run() == 3 and again.learner.stage == 1
    assert second.acts[:2] == ["publish 1 of step 1", "pull 2"]
    assert all(np.array_equal(ports.tensors[-1][name], value) for name, value in second.tensors[-1].items())
