"""Full disks: one error for whoever meets them, with path, need and free bytes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import checkpoints, disk
from actors.disk import DiskFull
from actors.learner_loop import Loop
from pipelines.settings import CheckpointSettings, Settings

MESSAGE = r"{}.*: the disk is full: [\d,]+ bytes are needed, [\d,]+ are free\..*--resume"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A real file system of 4 MiB."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def _safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3_000_000, np.float32)}, path)


def _torch(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3_000_000)}, path)


def _plain(path: Path) -> None:
    path.write_bytes(bytes(12_000_000))


@pytest.mark.parametrize("write", [_safetensors, _torch, _plain])
def test_every_writer_says_it_alike(write: Callable[[Path], None], small_disk: Path) -> None:
    """safetensors and torch raise errors of their own, torch without a cause."""
    with pytest.raises(DiskFull, match=MESSAGE.format(small_disk)), disk.named(small_disk, 12_000_000):
        write(small_disk / "file")
    assert not list(small_disk.glob(".probe*"))


def test_other_errors_pass(tmp_path: Path) -> None:
    """Among them torch's for a folder that is missing, on a disk with room."""
    with pytest.raises(RuntimeError, match="nothing to do with it"), disk.named(tmp_path, 1):
        raise RuntimeError("nothing to do with it")
    with pytest.raises(RuntimeError, match="does not exist"), disk.named(tmp_path, 1):
        _torch(tmp_path / "missing" / "file")
    with pytest.raises(OSError, match="Permission denied"), disk.named(tmp_path, 1):
        raise OSError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_cause_further_down_is_found(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskFull), disk.named(tmp_path, 1):
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise ValueError("could not serialise") from error


def test_too_little_room_is_known_before_anything_is_written(small_disk: Path) -> None:
    with pytest.raises(DiskFull, match=r"5,000,000 bytes are needed, 4,\d\d\d,\d\d\d are free"):
        checkpoints.begin(small_disk, 4, need=5_000_000)
    assert not list(checkpoints.root(small_disk).iterdir())


class _Learner:
    """Two files of a given size, as a rank writes them."""

    rank, world = 0, 1

    def __init__(self, size: int) -> None:
        self.size = size

    def barrier(self) -> None: ...

    def save(self, folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_bytes(os.urandom(self.size))


def _loop(run: Path, size: int, keep: int = 3) -> Any:
    return Loop(
        learner=_Learner(size),  # type: ignore[arg-type]
        ports=SimpleNamespace(snapshot=lambda step: {"trained": step}),  # type: ignore[arg-type]
        settings=Settings(checkpoint=CheckpointSettings(keep=keep)),
        run_dir=run,
        canaries=(),
        attempt=1,
    )


def test_a_disk_that_fills_leaves_the_earlier_checkpoint_and_no_remains(small_disk: Path) -> None:
    """The second is larger than the first let expect and fails while it is written; the third is refused
    before. With room again the run goes on."""
    loop = _loop(small_disk, 400_000)
    loop.step = 1
    loop._commit()
    loop.learner.size, loop.step = 3_000_000, 2
    with pytest.raises(DiskFull, match=MESSAGE.format(small_disk)):
        loop._commit()
    assert [path.name for path in checkpoints.root(small_disk).iterdir()] == ["step-1"]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_800_000))
    loop.learner.size = 100
    with pytest.raises(DiskFull, match=r"800,000 bytes are needed"):
        loop._commit()
    found = checkpoints.newest_verified(small_disk)
    assert found is not None and (found.step, found.rejected) == (1, ())
    ballast.unlink()
    loop._commit()
    found = checkpoints.newest_verified(small_disk)
    assert found is not None and found.step == 2


def test_a_commit_that_meets_the_full_disk_at_any_write_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's write fails after k bytes, or one of the fsyncs does, as on disks that allocate late."""
    for place in (*range(0, 400, 40), "fsync"):
        run = tmp_path / str(place)
        loop = _loop(run, 1000)
        loop.step = 1
        loop._commit()
        loop.step = 2
        with monkeypatch.context() as patch:
            _fill_at(patch, place)
            with pytest.raises(DiskFull, match=MESSAGE.format(re.escape(str(run)))):
                loop._commit()
        assert [path.name for path in checkpoints.root(run).iterdir()] == ["step-1"]
        found = checkpoints.newest_verified(run)
        assert found is not None and found.step == 1
        shutil.rmtree(run)


def _fill_at(patch: pytest.MonkeyPatch, place: int | str) -> None:
    real, left = os.write, [place]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(handle: int, content: bytes) -> int:
        if not left[0]:
            full()
        written = real(handle, content[: left[0]])
        left[0] -= written
        return written

    patch.setattr(os, "fsync", full) if place == "fsync" else patch.setattr(os, "write", write)
