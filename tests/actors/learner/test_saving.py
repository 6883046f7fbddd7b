"""What is saved: finite, of the size that was expected, with the count of skipped steps."""

from __future__ import annotations

import math
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from actors import disk, saving
from actors.disk import DiskFull
from actors.learner import NotFinite

Make = Callable[..., Any]


def _spoil_weight(learner: Any) -> None:
    dict(learner.policy.model.named_parameters())["model.language_model.norm.weight"].data[3] = math.inf


def _spoil_moment(learner: Any) -> None:
    optimizer = getattr(learner.policy.engine.optimizer, "optimizer", learner.policy.engine.optimizer)
    state = next(iter(optimizer.state.values()))
    state["exp_avg_sq"].view(-1)[5] = math.nan


def _spoil_head(learner: Any) -> None:
    next(learner.heads.modules["probe"].parameters()).data[0, 0] = -math.inf


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_spoil_weight, r"norm\.weight is not finite"),
        (_spoil_moment, r"exp_avg_sq of optimizer shard 0 is not finite"),
        (_spoil_head, r"head probe: .* is not finite"),
    ],
)
@pytest.mark.parametrize("stage", [0, 2])
def test_nothing_that_is_not_finite_is_saved(
    stage: int, spoil: Callable[[Any], None], named: str, make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    learner = make(cases.recipe(cases.stage(cases.everything())), zero_stage=stage)
    learner.train_step([cases.group(1)], 1, 1)
    spoil(learner)
    with pytest.raises(NotFinite, match=named):
        learner.save(tmp_path / "step")
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_first_checkpoint_is_about_as_large_as_expected(
    lora: dict[str, int] | None, make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    learner = make(zero_stage=2, lora=lora)
    learner.train_step([cases.group(1)], 1, 1)
    learner.save(tmp_path)
    assert 0.5 < saving.estimate(learner) / disk.size(tmp_path) < 2


def test_steps_skipped_before_a_restart_count_towards_the_limit(
    make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    """With two tolerated, one before and one after leave room for none: the third ends the run."""
    learner = make(max_skipped=2)
    sick = [cases.group(1)]
    _never_finite(learner)
    assert not learner.train_step(sick, 1, 1).applied
    learner.save(tmp_path)
    again = make(max_skipped=2)
    again.load(tmp_path)
    _never_finite(again)
    assert not again.train_step(sick, 1, 2).applied
    with pytest.raises(NotFinite, match="3 steps in a row"):
        again.train_step(sick, 1, 3)


def _never_finite(learner: Any) -> None:
    next(iter(learner.policy.model.parameters())).register_hook(lambda grad: grad * math.nan)


def test_every_generator_of_chance_goes_on(make: Make, tmp_path: Path) -> None:
    learner = make()
    learner.save(tmp_path)
    expected = (random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(())))
    again = make()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again.load(tmp_path)
    assert expected == (
        random.random(),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Real file systems of some MiB."""
    mounted: list[Path] = []

    def mount(mebibytes: int) -> Path:
        folder = tmp_path / str(mebibytes)
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_a_disk_that_fills_while_the_learner_saves_is_named(
    share: float, make: Make, cases: ModuleType, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """The weights (safetensors), the heads (torch) or the optimizer (DeepSpeed) meet the end of the disk."""
    learner = make(zero_stage=2)
    learner.train_step([cases.group(1)], 1, 1)
    learner.save(tmp_path / "whole")
    size = disk.size(tmp_path / "whole")
    place = small_disk(max(1, int(size * share / 2**20)))
    with pytest.raises(DiskFull, match=f"{place}.*{size:,} bytes are needed"), disk.named(place, size):
        learner.save(place / "step")
