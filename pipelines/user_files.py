"""A user's Python file as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


class NotPython(FileNotFoundError):
    """No Python file; the message names the path."""


def load_file(path: Path, name: str) -> ModuleType:
    """Run the file as the module `name`. Raises NotPython, and whatever the file raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NotPython(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look themselves up by module name
    spec.loader.exec_module(module)
    return module
