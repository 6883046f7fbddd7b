"""A blended reference against the weights that TRL's own callback produced (`make goldens`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from actors.exporting import copy_into
from actors.policy import Policy
from actors.references import References
from pipelines.references import Blended

FILE = Path(__file__).parents[2] / "goldens" / "trl.json"
CASES = [case for case in json.loads(FILE.read_text())["cases"] if case["method"] == "tr_dpo"]


class One(nn.Module):
    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tr_dpo(case: dict[str, Any]) -> None:
    """The policy stays where it is; the reference moves after every second step."""
    reference = One(case["inputs"]["reference_weights"])
    policy = SimpleNamespace(model=One(case["inputs"]["policy_weights"]))
    references = References(cast(Policy, policy))

    def take(weights: Any, share: float) -> None:
        copy_into(reference, weights, 0, share)

    references.twin = cast(Any, SimpleNamespace(take=take))
    params = case["params"]
    references._kind = Blended(alpha=params["ref_model_mixup_alpha"], every=params["ref_model_sync_steps"])
    for step, wanted in enumerate(case["after_each_step"], start=1):
        references.after(step)
        assert reference.w.tolist() == pytest.approx(wanted, abs=1e-6)
