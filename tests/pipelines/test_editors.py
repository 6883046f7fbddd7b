from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipelines.editors import load_editor
from pipelines.settings import Settings, SettingsError
from pipelines.worlds.glyphs import Glyphs

FUNCTIONS = """
def shout(text, kind, row, seed):
    row["seen"] = True
    return f"{text.upper()} {kind} {row['id']} {seed}"


async def later(text, kind, row, seed):
    return text + "!"


def number(text, kind, row, seed):
    return 3


def two(text, kind):
    return text
"""


def editor(tmp_path: Path, name: str) -> Any:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return load_editor(Settings(editor=f"{tmp_path / 'mine.py'}:{name}"))


def test_a_function_edits_and_gets_a_copy_of_the_row(tmp_path: Path) -> None:
    row = {"id": "r"}
    assert asyncio.run(editor(tmp_path, "shout")("hi", "inject", row, 4)) == "HI inject r 4"
    assert row == {"id": "r"}
    assert asyncio.run(editor(tmp_path, "later")("hi", "correct", {}, 0)) == "hi!"


def test_what_is_no_editor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"number': expected a text, got int"):
        asyncio.run(editor(tmp_path, "number")("hi", "correct", {}, 0))
    for name, why in (("two", "too many"), ("none", "no attribute 'none'")):
        with pytest.raises(SettingsError, match=rf"not a function of \(text, kind, row, seed\).*{why}"):
            editor(tmp_path, name)


def test_the_world_corrects_what_it_injects() -> None:
    edit = load_editor(Settings())
    [row] = Glyphs().rows("train", 1, 0, "caption")
    wrong = asyncio.run(edit(row["answer"], "inject", row, 1))
    assert wrong != row["answer"]
    verify = lambda text: Glyphs().verify(row, text)  # noqa: E731
    assert verify(wrong)["wrong"] > 0 == verify(asyncio.run(edit(wrong, "correct", row, 0)))["wrong"]
    with pytest.raises(ValueError, match="got 'translate'"):
        asyncio.run(edit("a", "translate", row, 0))


def test_a_file_may_hold_a_dataclass(tmp_path: Path) -> None:
    """A dataclass with postponed annotations looks its own module up by name."""
    file = tmp_path / "own_edits.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import KW_ONLY, dataclass\n"
        "@dataclass\n"
        "class Rule:\n"
        "    _: KW_ONLY\n"
        "    now: str = 'three'\n"
        "def rewrite(text, kind, row, seed):\n"
        "    return Rule().now\n"
    )
    editor = load_editor(Settings(editor=f"{file}:rewrite"))

    assert asyncio.run(editor("two", "correct", {}, 0)) == "three"
