"""When the loop commits and what it tells of it, with a learner of a few bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import checkpoints
from actors.checkpoints import StaleAttempt
from actors.learner_loop import Loop
from actors.mirror import Mirror
from pipelines.settings import CheckpointSettings, LearnerSettings, Settings, SyncSettings
from pipelines.types import Shard


class _Learner:
    rank, world, stage, syncs_adapter = 0, 1, 0, False
    recipe = SimpleNamespace(
        needs=frozenset(), stages=(SimpleNamespace(then=(), freshness=None, uses=1, replay=0.0),)
    )
    recipe.ends = lambda steps: (steps,)

    def train_step(self, *_: Any) -> Any:
        return SimpleNamespace(metrics={"loss": 1.0}, margins=(), applied=True, bad=())

    def barrier(self) -> None: ...

    def canary(self, _: Any) -> tuple[float, ...]:
        return ()

    def stream(self) -> Any:
        return iter(())

    def reference_weights(self) -> None: ...

    def save(self, folder: Path) -> None:
        (folder / "weights").write_text(folder.name)


@dataclass
class _Ports:
    last: int
    metrics: list[Mapping[str, float]] = field(default_factory=list)

    def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        return Shard(step=step, stop=step > self.last)

    def trained(self, attempt: int, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)

    def snapshot(self, step: int) -> Mapping[str, Any]:
        return {"trained": step}

    def publish(self, version: Any) -> None: ...


def _loop(run: Path, last: int, checkpoint: CheckpointSettings, **more: Any) -> Any:
    settings = Settings(
        learner=LearnerSettings(steps=100),
        sync=SyncSettings(every=100),
        checkpoint=checkpoint,
        stop_grace_s=20,
    )
    more = {"attempt": 1, **more}
    learner: Any = _Learner()
    return Loop(learner=learner, ports=_Ports(last), settings=settings, run_dir=run, canaries=(), **more)


def _steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.root(run).iterdir())


def test_a_notice_that_a_node_will_go_commits_at_once_and_once(tmp_path: Path) -> None:
    """Nodes are named at step 3, more of them at step 5; a notice that stands does not commit again."""
    answers = iter([None, None, "one", "one", "one, two", "one, two", None])
    loop = _loop(tmp_path, 7, CheckpointSettings(every=50, keep=9), notice=lambda: next(answers))
    assert loop.run() == 7
    assert _steps(tmp_path) == [3, 5, 7]  # 7 is the end


def test_what_others_load_from_is_not_removed(tmp_path: Path) -> None:
    first = _loop(tmp_path, 1, CheckpointSettings(every=1, keep=1))
    first.run()
    held = frozenset({checkpoints.root(tmp_path) / "step-1"})
    _loop(tmp_path, 4, CheckpointSettings(every=1, keep=1), attempt=2, step=1, held=held).run()
    assert _steps(tmp_path) == [1, 4]


def test_an_attempt_that_was_replaced_cannot_commit(tmp_path: Path) -> None:
    _loop(tmp_path, 2, CheckpointSettings(every=1), attempt=2).run()
    with pytest.raises(StaleAttempt):
        _loop(tmp_path, 3, CheckpointSettings(every=1), attempt=1, step=2).run()
    found = checkpoints.recover(tmp_path)
    assert found is not None and (found.step, found.manifest["attempt"]) == (2, 2)


def test_the_first_step_of_an_attempt_says_how_it_was_resumed(tmp_path: Path) -> None:
    opening = {"resumed/ranks": 1.0, "resumed/optimizer": 0.0}
    loop = _loop(tmp_path, 2, CheckpointSettings(every=9), opening=opening)
    loop.run()
    first, second = loop.ports.metrics
    assert first.items() >= opening.items() and not second.keys() & opening.keys()


def test_every_commit_reaches_the_mirror_before_the_run_ends(tmp_path: Path) -> None:
    place = str(tmp_path / "mirror")
    loop = _loop(tmp_path / "run", 4, CheckpointSettings(every=2, keep=1, mirror=place))
    loop.run()
    assert Mirror(place, "run").steps() == [4]
    assert json.loads((tmp_path / "run" / "mirror.json").read_text()) == {
        "step": 4,
        "failures": 0,
        "error": None,
    }
    assert {"mirror/step", "mirror/failures"} <= loop.ports.metrics[-1].keys()
