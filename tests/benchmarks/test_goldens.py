"""The stored golden numbers of TRL, and that its own code still gives them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "goldens"
FILES = {"current": "trl.json", "retired": "trl_retired.json"}
DPO_LOSSES = {
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}
DIVERGENCES = {"reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"}


def stored(family: str) -> dict[str, Any]:
    return json.loads((FOLDER / FILES[family]).read_text())


def installed() -> str | None:
    """TRL's version: of the extra `bench`."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


def shape(nested: Any) -> Any:
    """The lists' lengths, whatever is in them."""
    return [shape(item) for item in nested] if isinstance(nested, list) else None


def numbers(nested: Any) -> list[float]:
    if isinstance(nested, list | dict):
        items = nested.values() if isinstance(nested, dict) else nested
        return [number for item in items for number in numbers(item)]
    return [nested] if isinstance(nested, float) else []


@pytest.mark.parametrize("family", FILES)
def test_every_case_has_its_inputs_a_finite_loss_and_a_gradient_laid_out_as_the_policy(family: str) -> None:
    found = stored(family)
    names = [case["name"] for case in found["cases"]]
    assert len(set(names)) == len(names)
    for case in found["cases"]:
        assert all(map(math.isfinite, numbers(case))), case["name"]
        if case["method"] == "tr_dpo":  # weights, no loss
            continue
        assert isinstance(case["loss"], float), case["name"]
        assert any(numbers(case["grads"])), case["name"]
        if "batch" not in case:
            continue
        batch = found["batches"][case["batch"]]
        if "own" in batch:
            assert all(shape(grads) == shape(batch[side]["policy"]) for side, grads in case["grads"].items())
        else:
            assert shape(case["grads"]) == shape(batch["policy"]), case["name"]


def test_every_preference_loss_and_divergence_of_dpo_is_covered() -> None:
    options = [case["params"] for case in stored("current")["cases"] if case["method"] == "dpo"]
    kinds = [kind for one in options if isinstance(kind := one["loss_type"], str)]
    assert set(kinds) == DPO_LOSSES
    assert {one["f_divergence_type"] for one in options} == DIVERGENCES


@pytest.mark.parametrize("family", FILES)
def test_trl_gives_the_stored_numbers(family: str, tmp_path: Path) -> None:
    before = stored(family)
    if installed() != before["trl"]:
        pytest.skip(f"needs TRL {before['trl']}, installed is {installed()}")
    command = [sys.executable, "-m", "benchmarks.goldens", "--family", family, "--out", str(tmp_path / "new")]
    # A learner in this process leaves it behind, and accelerate takes it for a distributed launch.
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "new").read_text())
    assert [case["name"] for case in after["cases"]] == [case["name"] for case in before["cases"]]
    assert numbers(after["batches"]) == pytest.approx(numbers(before["batches"]), rel=1e-12)
    for old, new in zip(before["cases"], after["cases"], strict=True):
        tolerance = old.get("atol", 1e-12)
        assert numbers(new) == pytest.approx(numbers(old), rel=1e-9, abs=tolerance), old["name"]


def test_the_stand_in_model_gives_what_trl_s_own_head_computes_in_single_precision() -> None:
    pytest.importorskip("trl", minversion="1.16", reason="needs TRL: the extra `bench`")
    from trl.trainer.utils import add_fused_lm_head

    from benchmarks.goldens.stand_in import VOCABULARY, encode, models

    rows = [[-0.5, -1.25, -2.0], [-0.125, -3.0]]
    model, _ = models("head", rows, rows)
    encoded = encode([0, 1], [3, 2])
    expected = model(encoded.input_ids, labels=encoded.labels(), fused_lm_head=True)

    class Headed(nn.Module):
        """The stand-in's logits as hidden states under an identity head."""

        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
            nn.init.eye_(self.head.weight)

        def base_model(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=model.logits(input_ids).detach().float())

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    headed = Headed()
    add_fused_lm_head(headed, outputs=fields)
    computed = headed(input_ids=encoded.input_ids, labels=encoded.labels(), fused_lm_head=True)
    for field in fields:
        torch.testing.assert_close(computed[field].double(), expected[field].double(), atol=1e-5, rtol=0)
