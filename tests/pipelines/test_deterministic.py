"""What a deterministic run asks of its settings."""

from __future__ import annotations

import re

import pytest

from pipelines.deterministic import BOUNDS, FITTING
from pipelines.settings import SettingsError, demands, load, to_yaml

OTHERS = {0: "2", 1: "2", "wait": "keep", "float32": "bfloat16", None: "auto"}


def test_the_lag_that_nobody_asked_for_is_none():
    assert load(None, ["deterministic=true"]).sync.max_lag == 0
    assert load(None, []).sync.max_lag == 1
    assert load(None, ["deterministic=true", "sync.bucket_mib=8"]).sync.max_lag == 0


def test_resolved_settings_are_settings(tmp_path):
    run = load(None, ["deterministic=true"])
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert load(tmp_path / "run.yaml") == run


def test_it_is_one_process():
    assert demands(load(None, ["deterministic=true"])) == {"CPU": 1.0, "GPU": 0.0}


@pytest.mark.parametrize("key", [key for key, _, _ in FITTING])
def test_what_contradicts_is_refused_by_name(key: str):
    [(fitting, why)] = [(value, why) for name, value, why in FITTING if name == key]
    other = f"{key}={OTHERS[fitting]}"
    with pytest.raises(SettingsError, match=f"{re.escape(key)}.*{re.escape(why)}"):
        load(None, ["deterministic=true", other])
    load(None, [other])  # by itself it is fine


@pytest.mark.parametrize("key", [*BOUNDS, "rollout.engine.backend"])
def test_so_are_pools_that_may_grow_and_the_engine_that_batches_by_time(key: str):
    value = "vllm" if key.endswith("backend") else "3"
    with pytest.raises(SettingsError, match=re.escape(key)):
        load(None, ["deterministic=true", f"{key}={value}"])


def test_everything_that_contradicts_is_named_at_once():
    with pytest.raises(SettingsError) as raised:
        load(None, ["deterministic=true", "sync.max_lag=1", "learner.workers=2", "learner.dtype=bfloat16"])
    assert all(key in str(raised.value) for key in ("sync.max_lag", "learner.workers", "learner.dtype"))
