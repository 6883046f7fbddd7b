from __future__ import annotations

from pathlib import Path

import pytest

import pipelines


@pytest.fixture(scope="session")
def served_checkpoint() -> Path:
    """What the real endpoint is started with: a checkpoint in Hugging Face layout, or a run."""
    return Path(pipelines.__file__).parent / "worlds" / "glyphs" / "base"
