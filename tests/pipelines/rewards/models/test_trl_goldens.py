"""The reward models' losses against numbers that TRL's own code produced (`make goldens`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.rewards.models.losses import bradley_terry

FILE = Path(__file__).parents[3] / "goldens" / "trl.json"
CASES = [case for case in json.loads(FILE.read_text())["cases"] if case["method"] == "reward"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_bradley_terry(case: dict[str, Any]) -> None:
    """TRL centres each pair by (r_w + r_l)^2; here the batch's mean is centred, so that part is added."""
    scores = torch.tensor(case["inputs"]["scores"], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor(case["inputs"]["margins"] or [0.0] * len(scores), dtype=torch.float64)
    loss = bradley_terry(scores[:, 0], scores[:, 1], margins).mean()
    loss = loss + case["params"].get("center_rewards_coefficient", 0.0) * scores.sum(1).square().mean()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.tensor(case["grads"], dtype=torch.float64).view_as(gradient))


def test_every_option_is_there() -> None:
    assert len(CASES) == 3 and any(case["inputs"]["margins"] for case in CASES)
