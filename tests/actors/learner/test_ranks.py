"""Real ranks with DeepSpeed: other numbers of ranks, clocks apart, one rank's NaN, and deaths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 600


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """All scenes of `ranks.py`, one after another."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "spec.json").write_text(json.dumps({"folder": str(folder), "model": str(model)}))
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder / "spec.json")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_S,
        check=True,
        capture_output=True,
    )
    return folder


def _result(scenes: Path, scene: str) -> dict[str, Any]:
    return json.loads((scenes / f"{scene}.json").read_text())


def _said(scenes: Path, scene: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank reports of a scene that all ranks ended well."""
    logs = [(scenes / f"{scene}-{ranks}-{rank}.log").read_text()[-2000:] for rank in range(ranks)]
    assert _result(scenes, f"{scene}-{ranks}")["codes"] == [0] * ranks, "\n".join(logs)
    return [_result(scenes, f"{scene}-{ranks}-{rank}") for rank in range(ranks)]


def _trained(metrics: list[dict[str, float]]) -> dict[str, float]:
    keys = ("loss", "grad_norm", "running", "logp", "margin", "lr")
    return {f"{i} {k}": v for i, step in enumerate(metrics) for k, v in step.items() if k.startswith(keys)}


@pytest.mark.parametrize(("scene", "ranks"), [("skewed", 2), ("save", 1)])
def test_a_new_learner_goes_on_from_a_checkpoint_as_the_old_one_did(
    scene: str, ranks: int, scenes: Path
) -> None:
    """SHA-256 over weights, optimizer, heads, statistics, counters and random numbers of each rank, two steps
    later. The clocks of the two ranks are two hours apart: nothing that is saved depends on them."""
    for said in _said(scenes, scene, ranks):
        assert len(said) == 2
        for config, found in said.items():
            assert (found["how"], found["same"]) == ("exact", True), config


@pytest.mark.parametrize(("saved", "now"), [("skewed-2", 1), ("save-1", 2)])
def test_another_number_of_ranks_goes_on_with_the_same_losses(saved: str, now: int, scenes: Path) -> None:
    expected = _result(scenes, f"{saved}-0")
    for said in _said(scenes, "resize", now):
        assert set(said) == set(expected)
        for config, found in said.items():
            assert found["how"] == ("exact" if config == "zero-0" else "resharded"), config
            assert found["warm"] == 2  # the warm-up goes on as well
            got, wanted = _trained(found["metrics"]), _trained(expected[config]["metrics"])
            assert "0 loss" in wanted and "1 running/rho" in wanted
            loose = 2e-2 if "bfloat16" in config else 1e-4
            assert got == pytest.approx(wanted, rel=loose, abs=loose / 10), config


@pytest.mark.parametrize("ranks", [1, 2])
def test_where_the_optimizer_cannot_be_resharded_the_weights_are_taken_and_it_starts_anew(
    ranks: int, scenes: Path
) -> None:
    """DeepSpeed refuses to convert, or converts to weights that are not the checkpoint's."""
    for said in _said(scenes, "unconvertible", ranks):
        assert set(said) == {"refuses", "lies"}
        for case, found in said.items():
            assert (found["how"], found["equal"], found["warm"]) == ("weights only", True, 0), case
            assert found["lr"] == pytest.approx(1e-3 / 3)  # the first of three warm-up steps
            assert found["left"] == []


def test_what_is_not_finite_on_one_rank_is_stepped_on_none(scenes: Path) -> None:
    """Rank 1 alone has a NaN, first in its loss, then only in a gradient; `max_skipped` is 2."""
    for said in _said(scenes, "sick", 2):
        assert set(said) == {"zero-0", "zero-3"}
        for config, found in said.items():
            assert found["applied"] == [False, False] and found["same"], config
            assert found["skipped"] == 2 and "3 steps in a row" in found["error"]
            assert found["bad"][0].startswith("comparison group-12/0, prompt 'row-12'")  # rank 1's
            assert found["healthy"]


@pytest.mark.parametrize(
    ("scene", "mark", "newest"),
    [("backward", "backward", 1), ("allreduce", "reduce", 2), ("saving", "saving", 2)],
)
def test_a_rank_killed_ends_the_other_in_time_and_costs_at_most_one_interval(
    scene: str, mark: str, newest: int, scenes: Path
) -> None:
    """Rank 1 is killed between two layers' gradients of step 2, inside a reduction of step 3, and with half
    of its shard of step 3 written. Rank 0 fails within the collective's deadline of 20 s."""
    result = _result(scenes, f"{scene}-2")
    assert mark in result["mark"] and result["codes"] == [3, -9]
    assert result["newest"] == newest
    assert result["seconds_after_death"] < 25
    assert "gloo" in _result(scenes, f"{scene}-2-0")["error"]


@pytest.mark.parametrize(("scene", "ranks"), [("resumed", 2), ("resumed_alone", 1)])
def test_after_three_deaths_the_run_ends_with_the_weights_of_one_that_was_never_cut(
    scene: str, ranks: int, scenes: Path
) -> None:
    """To the bit; also with one rank in place of two, which sums the same two halves of a step."""
    undisturbed = _said(scenes, "whole", 2)[0]
    resumed = _said(scenes, scene, ranks)[0]
    assert (resumed["begun"], resumed["steps"]) == (2, 4)
    assert resumed["weights"] == undisturbed["weights"]
