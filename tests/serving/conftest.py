from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.checkpoints import begin, commit
from tests import byte_model
from tests.serving import browser


@pytest.fixture(scope="session")
def served_checkpoint(shared_run: Any) -> Path:
    """The run that was interrupted, resumed and finished: serving takes its newest checkpoint."""
    return shared_run.folder


@pytest.fixture(scope="session")
def byte_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model that spells every byte; its training takes half a minute."""
    return byte_model.write(tmp_path_factory.mktemp("bytes") / "byte-model")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser.running(tmp_path_factory.mktemp("profile")) as devtools:
        yield devtools


@pytest.fixture
def tab(chromium: str) -> Iterator[browser.Tab]:
    with browser.opened(chromium) as made:
        yield made


@pytest.fixture
def commit_checkpoint() -> Callable[..., Path]:
    """commit_checkpoint(run_dir, step, weight=0.0): the smallest checkpoint that can be registered, with what
    a learner leaves beside it."""

    def committed(run_dir: Path, step: int, weight: float = 0.0) -> Path:
        folder = begin(run_dir, step)
        (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
        (folder / "tokenizer.json").write_text('{"added_tokens": []}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        values = struct.pack("<f", weight)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)
        (folder / "learner").mkdir()
        (folder / "learner" / "state.pt").write_bytes(b"optimizer")
        return commit(run_dir, step, attempt=2, facts={"weight_version": step, "ledger": {}})

    return committed
