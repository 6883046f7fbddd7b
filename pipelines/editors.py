"""Who rewrites answers for programs that ask for it: the embedded world's rules, or somebody's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pipelines.rewards.threads import in_thread
from pipelines.settings import Settings
from pipelines.user_files import load_function

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
    takes = "(text, kind, row, seed)"
    return User(settings.editor, load_function("editor", settings.editor, takes, "", "", {}, 0))
