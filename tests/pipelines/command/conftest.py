"""A folder that looks like a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder that looks like a checkpoint from outside; its weights are a few zeros."""

    def make(
        name: str = "model",
        architecture: str = "Qwen2_5_VLForConditionalGeneration",
        config: Mapping[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        values: dict[str, Any] = {"architectures": [architecture]}
        values["text_config"] = {"max_position_embeddings": 2048}
        if architecture.endswith("ForConditionalGeneration"):
            values |= {"image_token_id": 1, "video_token_id": 2}
        (folder / "config.json").write_text(json.dumps({**values, **(config or {})}))
        tokens = [
            {"id": 0, "content": "<|im_end|>", "special": True},
            {"id": 1, "content": "<|image_pad|>", "special": True},
            {"id": 2, "content": "<think>", "special": False},
        ]
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "preprocessor_config.json").write_text("{}")
        save_file({"layers.0.q_proj.weight": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
        return folder

    return make
