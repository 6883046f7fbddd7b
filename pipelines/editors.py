"""Who rewrites answers for programs that ask for it: the embedded world's rules, or somebody's function."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipelines.rewards.threads import in_thread
from pipelines.settings import Settings
from pipelines.settings_errors import SettingsError
from pipelines.user_files import load_file

Function = Callable[[str, str, dict[str, Any], int], Any]


class Editor(Protocol):
    async def __call__(self, text: str, kind: str, gold: Mapping[str, Any], seed: int) -> str:
        """`text` rewritten; `kind` says how: "correct", "inject"... Raises ValueError for an unknown kind."""
        ...


class World:
    """Rules of the glyphs world: "correct" and "refine" mend false mentions, "inject" puts one in."""

    async def __call__(self, text: str, kind: str, gold: Mapping[str, Any], seed: int) -> str:
        from pipelines.worlds.glyphs import edits  # here, since it pulls in the world

        match kind:
            case "correct" | "refine":
                return edits.correct(text, gold)
            case "inject":
                return edits.inject(text, gold, seed)[0]
            case _:
                raise ValueError(f"editor 'world': expected the kind correct, refine or inject, got {kind!r}")


class User:
    """Calls `function(text, kind, row, seed)`; a plain function runs in a thread. It returns a text."""

    def __init__(self, name: str, function: Function) -> None:
        self.name, self.function = name, function

    async def __call__(self, text: str, kind: str, gold: Mapping[str, Any], seed: int) -> str:
        arguments = (text, kind, dict(gold), seed)
        if inspect.iscoroutinefunction(self.function):
            edited = await self.function(*arguments)
        else:
            edited = await in_thread(lambda: self.function(*arguments))
        if not isinstance(edited, str):
            raise ValueError(f"editor {self.name!r}: expected a text, got {type(edited).__name__}")
        return edited


def load_editor(settings: Settings) -> Editor:
    """The editor of a run. Raises SettingsError when it cannot be imported or has another signature."""
    if settings.editor == "world":
        return World()
    name = settings.editor
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            module = load_file(Path(place), f"plumbline_editor_{Path(place).stem}")
        else:
            module = _import(place)
        function = getattr(module, attribute)
        inspect.signature(function).bind("", "", {}, 0)
    except Exception as error:  # a module of the user may fail in any way
        raise SettingsError(
            f"editor: {name!r} is not a function of (text, kind, row, seed): {type(error).__name__}: {error}"
        ) from error
    return User(name, function)


def _import(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)
