"""What is left of a file whose writer ends in the middle of it, and who may write at all."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from subprocess import Popen

import pytest

from pipelines.durable import append, locked, mend, replace_file, swapped, write_file

INSIDE = """
import os, sys
from pathlib import Path
from pipelines.durable import locked
folder = Path(sys.argv[1])
for _ in range(200):
    with locked(folder / ".lock"):
        (folder / "inside").mkdir()  # fails where somebody else is inside
        os.sched_yield()
        (folder / "inside").rmdir()
"""


def killed_at(act: int, name: str, do: Callable[[], None]) -> bool:
    """Run `do` in a process that is gone before its `act`-th call of `os.NAME`. Whether it got that far."""
    pid = os.fork()
    if pid:
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended in (0, 9)
        return ended == 9
    left, real = [act], getattr(os, name)

    def mortal(*arguments: object) -> object:
        left[0] -= 1
        return real(*arguments) if left[0] else os._exit(9)

    setattr(os, name, mortal)
    try:
        do()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
def test_a_replacement_that_is_cut_leaves_the_old_content_or_the_new(tmp_path: Path, name: str) -> None:
    file = tmp_path / "deep" / "file"
    replace_file(file, b"old")
    for act in count(1):
        if not killed_at(act, name, lambda: replace_file(file, b"new")):
            break
        replaced = name in ("open", "fsync") and act == 2  # those of the folder
        assert file.read_bytes() == (b"new" if replaced else b"old")
        replace_file(file, b"old")
    assert act == (3 if name in ("open", "fsync") else 2)
    assert file.read_bytes() == b"new"


def test_what_raises_while_it_writes_swaps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), swapped(file) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert file.read_text() == "old"
    with swapped(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["order.json"]


def test_a_new_file_has_its_mode_from_its_first_byte_on(tmp_path: Path) -> None:
    write_file(tmp_path / "secret", b"s", 0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_no_two_processes_are_inside_a_lock(tmp_path: Path) -> None:
    processes = [Popen([sys.executable, "-c", INSIDE, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_a_lock_is_gone_with_its_holder(tmp_path: Path) -> None:
    def die_inside() -> None:
        with locked(tmp_path / ".lock"):
            os.close(os.open(tmp_path, os.O_RDONLY))

    assert killed_at(2, "open", die_inside)
    with locked(tmp_path / ".lock"):
        assert os.listdir(tmp_path) == [".lock"]


def test_a_line_after_a_torn_one_is_not_glued_to_it(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for line in (b"one\n", b"two\n"):
        append(file, line)
        with file.open("ab") as stream:
            stream.write(b'{"torn":')
    append(file, b"three\nfour\n")
    assert file.read_bytes() == b"one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize("name", ["pwrite", "fsync"])
def test_lines_that_were_refused_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, real = tmp_path / "log", os.pwrite
    append(file, b"one\n")
    with monkeypatch.context() as patch:

        def full(*arguments: object) -> int:
            if name == "fsync":
                raise OSError(28, "No space left on device")
            return real(arguments[0], arguments[1][:2], arguments[2])  # type: ignore[call-overload,index]

        patch.setattr(os, name, full)
        with pytest.raises(OSError, match=r"No space|^2 of 4 bytes could be written"):
            append(file, b"two\n")
    assert file.read_bytes() == b"one\n"


@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\n" + b"2" * 70_000 + b"\n"])
@pytest.mark.parametrize("torn", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_mending_keeps_whole_lines_however_long(tmp_path: Path, whole: bytes, torn: int) -> None:
    file = tmp_path / "log"
    file.write_bytes(whole + b"t" * torn)
    mend(file)
    assert file.read_bytes() == whole
