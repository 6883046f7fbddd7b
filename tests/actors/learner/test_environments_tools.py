"""Where DeepSpeed finds the tools for its communication op, and where it keeps what it built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from actors.training import use_the_environments_tools


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment that was not activated."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    return tmp_path


def test_they_are_the_environments_own_and_come_after_the_users(environment: Path) -> None:
    use_the_environments_tools()
    use_the_environments_tools()

    assert os.environ["PATH"].split(os.pathsep) == ["/usr/bin", str(environment / "bin")]
    assert Path(os.environ["TORCH_EXTENSIONS_DIR"]).parent == environment


def test_a_folder_that_the_user_chose_is_kept(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")

    use_the_environments_tools()

    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/elsewhere"


def test_an_environment_that_cannot_be_written_keeps_nothing(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    use_the_environments_tools()

    assert "TORCH_EXTENSIONS_DIR" not in os.environ
