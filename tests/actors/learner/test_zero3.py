"""ZeRO across ranks: pictures on rank 0, text on rank 1, odd counts. It ends, and it equals one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

STAGES = (3, 2, 0)
DEADLINE_S = 240


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    """Three comparisons with pictures on rank 0, two of text alone on rank 1, micro-batches of two."""
    return {
        "model": str(model),
        "folder": str(tmp_path_factory.mktemp("ranks")),
        "stages": list(STAGES),
        "steps": 3,
        "micro_batch": 2,
        "logits": 3000,  # the projection to the vocabulary is cut into pieces
        "groups": [[[1, True], [2, True], [3, True]], [[4, False], [5, False]]],
    }


@pytest.fixture(scope="module")
def two_ranks(spec: dict[str, Any]) -> Path:
    """Runs both ranks as processes; a rank that waits for ever fails by the deadline."""
    folder = Path(spec["folder"])
    (folder / "spec.json").write_text(json.dumps(spec))
    program = str(Path(__file__).with_name("cases.py"))
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(folder / "spec.json"), str(rank)],
            cwd=root,
            env=environment,
            stdout=(folder / f"rank-{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(DEADLINE_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    logs = [(folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    return folder


@pytest.fixture(scope="module")
def one_rank(spec: dict[str, Any], cases: ModuleType) -> tuple[Any, list[Any]]:
    """The same five comparisons on one rank, in one micro-batch and one piece, without sharding."""
    return cases.train({**spec, "micro_batch": 5, "logits": 2**26}, 0, 0, 1)


def _largest_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max())


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_equal_those_of_one_rank(
    stage: int, two_ranks: Path, one_rank: tuple[Any, list[Any]]
) -> None:
    expected = one_rank[0].gradients
    got = np.load(two_ranks / f"gradients-{stage}.npz")
    assert set(got.files) == set(expected)
    scale = max(float(np.abs(grad).max()) for grad in expected.values())
    assert scale > 0.1  # the gradients are of the second step and not all but zero
    for name, grad in expected.items():
        assert _largest_error(got[name], grad) <= 1e-5 * scale, name


@pytest.mark.parametrize("stage", STAGES)
def test_losses_equal_those_of_one_rank(stage: int, two_ranks: Path, one_rank: tuple[Any, list[Any]]) -> None:
    metrics = json.loads((two_ranks / f"metrics-{stage}.json").read_text())
    for got, result in zip(metrics, one_rank[1], strict=True):
        expected = result.metrics
        assert set(got) == set(expected)
        for name in set(got) - {"seconds/forward_backward", "tokens_per_s"}:
            assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("stage", STAGES)
def test_weights_equal_those_of_one_rank(
    stage: int, two_ranks: Path, one_rank: tuple[Any, list[Any]]
) -> None:
    """Adam turns any gradient into a step of about the learning rate, rounding noise too: where the gradient
    vanishes by construction (the key bias) or is tiny, only most entries can agree."""
    expected = one_rank[0].export()
    got = np.load(two_ranks / f"weights-{stage}.npz")
    assert set(got.files) == set(expected)
    differing = sum(int((np.abs(got[name] - value) > 1e-6).sum()) for name, value in expected.items())
    total = sum(value.size for value in expected.values())
    assert differing / total < 0.01
