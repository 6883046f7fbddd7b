"""The parts of the benchmark that start no run: which runs there are, and what is made of their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import seeds
from pipelines.settings import load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(seeds, "FOLDER", tmp_path)
    return tmp_path


def finished(folder: Path, name: str, before: Sequence[int], after: Sequence[int]) -> None:
    """A finished run whose captions have that many wrong mentions beside one right one."""
    (folder / name / "evaluation").mkdir(parents=True)
    for when, counts in (("before", before), ("after", after)):
        records = [
            {"id": str(i), "kind": "caption", "text": "", "right": 1, "wrong": w, "missed": 0, "malformed": 0}
            for i, w in enumerate(counts)
        ]
        (folder / name / "evaluation" / f"{when}.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in records)
        )
    share = [sum(counts) / (len(counts) + sum(counts)) for counts in (before, after)]
    change = {"before": share[0], "after": share[1], "ratio": share[1] / share[0]}
    summary: dict[str, Any] = {"status": "finished", "wall_seconds": 60.0}
    summary["heldout"] = {"change": {"chair_i": change}}
    (folder / name / "summary.json").write_text(json.dumps(summary))


def forbid(*args: Any, **more: Any) -> None:
    raise AssertionError(f"started {args}")


def test_every_variant_is_a_run_that_settings_accept() -> None:
    for overrides in seeds.VARIANTS.values():
        assert load(None, overrides).data.source == "glyphs"
    assert load(None, seeds.VARIANTS["random_labels"]).reward == "random"


def test_finished_runs_are_read_and_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions with 1 and 1 wrong mentions beside 2 right ones, then 0 and 1: 2/4 before, 1/3 after."""
    monkeypatch.setattr(seeds.subprocess, "run", forbid)
    finished(folder, "online_dpo-0", [1, 1], [0, 1])

    found = seeds.align([0], 10)

    assert found["measures"]["chair_i"]["before"] == [0.5]
    assert found["measures"]["chair_i"]["after"] == pytest.approx([1 / 3])
    assert found["chair_i_ratio"] == pytest.approx([2 / 3])


def test_a_run_that_failed_is_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(folder, "mdpo-4", [1], [1])
    (folder / "mdpo-4" / "summary.json").write_text(json.dumps({"status": "failed: RunFailed: no"}))
    commands: list[list[str]] = []
    monkeypatch.setattr(seeds.subprocess, "run", lambda command, **more: commands.append(command))

    seeds.run("mdpo", 4, 10)

    [command] = commands
    assert {"align", "name=mdpo-4", "recipe=mdpo"} < set(command) and command[-2:] == ["--seed", "4"]


def test_controls_compare_random_labels_with_the_real_run_caption_by_caption(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After: the real run has 0 wrong of 4, the control 4 of 8; the difference of chair_i is 0.5 - 0."""
    monkeypatch.setattr(seeds.subprocess, "run", forbid)
    finished(folder, "online_dpo-1", [1] * 4, [0] * 4)
    finished(folder, "random_labels-1", [1] * 4, [1] * 4)

    found = seeds.controls([1], 10)

    assert found["ratio_real"] == [0.0] and found["mean_ratio_random"] == 1.0
    [difference] = found["chair_i_random_minus_real"]
    assert difference["difference"] == pytest.approx(0.5)


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(folder: Path) -> None:
    for step in (20, 100, 60):
        (folder / "mdpo-0" / "checkpoints" / f"step-{step}").mkdir(parents=True)

    assert seeds.checkpoint("mdpo", 0).name == "step-100"


def test_margins_are_paired_by_scene() -> None:
    assert seeds.by_scene(np.array([0.5, -1.0])) == {"0": 0.5, "1": -1.0}
