from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import ownership
from pipelines.ownership import owned, owner
from pipelines.settings_errors import SettingsError

HOLD = """
import sys
from pathlib import Path
from pipelines.ownership import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that owns `tmp_path`."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_living_owner_is_refused_and_the_first_named(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    named = rf"{re.escape(str(tmp_path))}: process {holder.pid} on host {re.escape(socket.gethostname())}"
    with pytest.raises(SettingsError, match=named), owned(tmp_path):
        pytest.fail("two owners")
    assert json.loads((tmp_path / ".owner").read_text())["pid"] == holder.pid  # the refused one wrote nothing


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_folder_of_a_dead_owner_is_free(
    how: signal.Signals, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(how)
    holder.wait()
    with owned(tmp_path):
        found = owner(tmp_path)
        assert found is not None and (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())


def test_an_owner_that_is_done_leaves_the_folder_free(tmp_path: Path) -> None:
    assert owner(tmp_path) is None
    with pytest.raises(RuntimeError, match="the run failed"), owned(tmp_path / "new"):
        raise RuntimeError("the run failed")
    with owned(tmp_path / "new"), pytest.raises(SettingsError, match="still lives"), owned(tmp_path / "new"):
        pytest.fail("two owners")


def test_a_stopped_owner_still_owns(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """A wedged process may go on one day, so only its death frees the folder."""
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(SettingsError, match="still lives"), owned(tmp_path):
        pytest.fail("two owners")


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(ownership.fcntl, "flock", refused)
    with pytest.raises(SettingsError, match=r"not supported.*file locks"), owned(tmp_path):
        pytest.fail("owned without a lock")
