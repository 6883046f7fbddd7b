from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def served_checkpoint(shared_run: Any) -> Path:
    """The run that was interrupted, resumed and finished: serving takes its newest checkpoint."""
    return shared_run.folder
