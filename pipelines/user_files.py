"""Somebody's own functions, named as package.module:function or path/to/file.py:function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.settings_errors import SettingsError


def load_function(setting: str, name: str, takes: str, *arguments: Any) -> Callable[..., Any]:
    """The function that a setting names, to be called as with `arguments`; `takes` says so in words.

    Raises SettingsError when it cannot be imported or has another signature.
    """
    place, _, attribute = name.rpartition(":")
    try:
        function = getattr(load_module(place, setting.rpartition(".")[2]), attribute)
        inspect.signature(function).bind(*arguments)
    except Exception as error:  # a module of the user may fail in any way
        raise SettingsError(
            f"{setting}: {name!r} is not a function of {takes}: {type(error).__name__}: {error}"
        ) from error
    return function


def load_module(place: str, role: str) -> ModuleType:
    """The module `place`, looked up in the current directory too, or the file that it is the path of.

    Files of different roles may share their name. Raises whatever importing raises.
    """
    if place.endswith(".py"):
        return _load_file(Path(place), f"plumbline_{role}_{Path(place).stem}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    return importlib.import_module(place)


def _load_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as for every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look themselves up by module name
    spec.loader.exec_module(module)
    return module
