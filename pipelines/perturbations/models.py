"""Models that plugs read, loaded once per process."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

Loaded = tuple[Any, Any, str]  # processor, model, device
_loaded: dict[tuple[str, str], Loaded] = {}
_lock = Lock()


def load_once(role: str, path: str, load: Callable[[str], tuple[Any, Any]]) -> Loaded:
    """A model for a role, on the GPU that the process may use or else on the CPU.

    Raises ValueError, naming role and path, when it cannot be loaded.
    """
    import torch

    with _lock:
        if (role, path) not in _loaded:
            try:
                processor, model = load(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{role} model {path!r} cannot be loaded: {error}") from error
            device = "cuda" if torch.cuda.is_available() else "cpu"
            _loaded[role, path] = (processor, model.eval().to(device), device)
        return _loaded[role, path]
