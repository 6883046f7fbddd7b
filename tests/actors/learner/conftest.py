from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.settings import LearnerSettings

Make = Callable[..., Any]


@pytest.fixture
def make(model: Path, cases: ModuleType) -> Make:
    """A learner with small settings; keyword arguments change them."""

    def build(recipe: Any = None, **changes: Any) -> Any:
        sizes: dict[str, Any] = {"zero_stage": 0, "micro_batch": 3, "warmup_steps": 0, "lr": 1e-3, **changes}
        return cases.Recording(model, LearnerSettings(**sizes), recipe or cases.recipe(), seed=1)

    return build


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """The builders of `cases.py`."""
    spec = importlib.util.spec_from_file_location("learner_cases", Path(__file__).with_name("cases.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learner_cases"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL checkpoint of the embedded world."""
    from pipelines.worlds.glyphs.model import build_model, save_checkpoint

    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(build_model(0), folder)
    return folder
