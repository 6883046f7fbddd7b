"""Commits that end at any of their acts, and checkpoints damaged on any byte."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import checkpoints
from actors.checkpoints import BadCheckpoint, newest_verified, recover, verify
from actors.mirror import Mirror, Mirroring

ACTS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


class Died(BaseException):
    """The process is gone: nothing may clean up after it."""


class Mortal:
    """Lets the process die at its n-th act on the disk: before it, or with half of what it writes written.

    After death every further act dies as well, so no handler can touch the disk. `lose_power` cuts files that
    were written and not synced to half of their bytes: power may fail in place of the process.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.acts, self.at, self.unsynced = 0, at, set[Path]()
        self.real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ACTS}
        for name in ACTS:
            monkeypatch.setattr(os, name, self._mortal(name))

    def _mortal(self, name: str) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            reading = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)
            self.acts += not reading
            if self.acts >= self.at and not reading:
                if name == "write" and self.acts == self.at:
                    self.real["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Died
            if name == "write":
                self.unsynced.add(_path(arguments[0]))
            if name == "fsync":
                self.unsynced.discard(_path(arguments[0]))
                return None  # waiting for the disk is not what is tested
            if name == "rename":
                old, new = map(Path, arguments)
                moved = {path for path in self.unsynced if path.is_relative_to(old)}
                self.unsynced = self.unsynced - moved | {new / path.relative_to(old) for path in moved}
            return self.real[name](*arguments, **options)

        return act

    def lose_power(self) -> None:
        for path in self.unsynced:
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)


def _path(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").resolve()


def _fill(folder: Path, text: str, files: int) -> None:
    (folder / "learner" / "state").mkdir(parents=True)
    for index in range(files):
        where = folder / ("learner/state" if index % 2 else "")
        handle = os.open(where / f"file-{index}.pt", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(handle, f"{text} {index}".encode())
        os.close(handle)


def _commit(run: Path, step: int, attempt: int, text: str, files: int = 3) -> Path:
    _fill(checkpoints.begin(run, step), text, files)
    return checkpoints.commit(run, step, attempt, {"ledger": {"trained": [text]}})


def _told(run: Path) -> tuple[int, str] | None:
    """Step and content of what a resume would use; raises unless it is whole."""
    found = newest_verified(run)
    if found is None:
        return None
    [text] = found.manifest["ledger"]["trained"]
    assert (found.path / "file-0.pt").read_text() == f"{text} 0"
    return found.step, text


#: name -> (what is there before, the commit that is cut)
Scene = tuple[list[tuple[int, int, str]], tuple[int, int, str]]
SCENES: dict[str, Scene] = {
    "first": ([], (4, 1, "new")),
    "next": ([(4, 1, "old")], (8, 1, "new")),
    "with retention": ([(2, 1, "older"), (4, 1, "old")], (8, 1, "new")),
    "same step": ([(4, 1, "old")], (4, 2, "new")),
    "same step, more before": ([(2, 1, "older"), (4, 1, "old")], (4, 2, "new")),
}


def _prepared(run: Path, scene: Scene) -> tuple[int, str] | None:
    for step, attempt, text in scene[0]:
        _commit(run, step, attempt, text)
    return _told(run)


def _cut(run: Path, scene: Scene, files: int, at: int, keep: int) -> tuple[bool, Mortal]:
    step, attempt, text = scene[1]
    with pytest.MonkeyPatch.context() as patch:
        mortal = Mortal(patch, at)
        try:
            _fill(checkpoints.begin(run, step), text, files)
            checkpoints.commit(run, step, attempt, {"ledger": {"trained": [text]}})
            checkpoints.prune(run, keep)
        except Died:
            return False, mortal
    return True, mortal


@pytest.mark.parametrize("name", SCENES)
def test_a_commit_cut_at_any_act_leaves_the_old_or_the_new_one_whole(name: str, tmp_path: Path) -> None:
    """Every act of every scene, with and without loss of power, for several numbers of files; recovering and
    recovering again find the same, the commit can be repeated, and nothing of the cut one stays."""
    scene, points = SCENES[name], 0
    step, attempt, text = scene[1]
    for files in (1, 4, 10):
        at, finished = 0, False
        while not finished:
            at += 1
            for power in (True, False):
                run = tmp_path / f"{files}-{at}-{power}"
                before = _prepared(run, scene)
                finished, mortal = _cut(run, scene, files, at, keep=1)
                if not power:
                    mortal.lose_power()
                points += not finished
                seen = _told(run)
                assert seen in (before, (step, text)), f"act {at}: {seen}"
                for _ in range(2):
                    found = recover(run)
                    assert (found and found.step) == (seen and seen[0])
                    assert _told(run) == seen
                _commit(run, step, attempt + 1, "again")
                checkpoints.prune(run, keep=1)
                assert _told(run) == (step, "again")
                names = {path.name for path in checkpoints.root(run).iterdir()}
                assert names == {f"step-{step}"}, f"act {at}: {names}"
                shutil.rmtree(run)
    assert points > 100


def test_a_recovery_cut_at_any_act_can_be_repeated(tmp_path: Path) -> None:
    """What a commit leaves between its two renames, beside remains of a removal and of a write."""
    at, finished = 0, False
    while not finished:
        at += 1
        run = tmp_path / str(at)
        _commit(run, 2, 1, "older")
        os.rename(_commit(run, 4, 1, "old"), checkpoints.root(run) / ".step-4.replaced")
        _fill(checkpoints.root(run) / ".step-1.removed", "gone", 2)
        assert _told(run) == (4, "old")  # a reader finds it without touching anything
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, at)
            try:
                recover(run)
                finished = True
            except Died:
                pass
        assert _told(run) == (4, "old")
        found = recover(run)
        assert found is not None and found.path.name == "step-4"
        assert {path.name for path in checkpoints.root(run).iterdir()} == {"step-2", "step-4"}
    assert at > 4


def test_a_damaged_checkpoint_that_is_made_again_is_kept_for_inspection(tmp_path: Path) -> None:
    _commit(tmp_path, 2, 1, "older")
    path = _commit(tmp_path, 4, 1, "old")
    (path / "file-0.pt").write_text("damaged")
    found = recover(tmp_path)
    assert found is not None and found.step == 2
    _commit(tmp_path, 4, 2, "new")
    assert _told(tmp_path) == (4, "new")
    assert (checkpoints.root(tmp_path) / "bad-step-4" / "file-0.pt").read_text() == "damaged"
    checkpoints.prune(tmp_path, keep=1)
    assert {path.name for path in checkpoints.root(tmp_path).iterdir()} == {"step-4", "bad-step-4"}


def test_any_flipped_byte_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    """Every bit of the manifest, and random bytes of the files."""
    rng = random.Random(0)
    older, path = _commit(tmp_path, 2, 1, "older"), _commit(tmp_path, 4, 1, "old")
    length = (path / checkpoints.MANIFEST).stat().st_size
    places = [(checkpoints.MANIFEST, byte, bit) for byte in range(length) for bit in range(8)]
    for name in json.loads((path / checkpoints.MANIFEST).read_bytes())["files"]:
        length = (path / name).stat().st_size
        places += [(name, rng.randrange(length), rng.randrange(8)) for _ in range(100)]
    for name, byte, bit in places:
        original = (path / name).read_bytes()
        data = bytearray(original)
        data[byte] ^= 1 << bit
        (path / name).write_bytes(data)
        with pytest.raises(BadCheckpoint) as refusal:
            verify(path)
        assert str(path / name) in str(refusal.value) or name == checkpoints.MANIFEST
        if bit == 0:
            found = newest_verified(tmp_path)
            assert found is not None and found.path == older and len(found.rejected) == 1
        (path / name).write_bytes(original)
    assert verify(path).step == 4


@pytest.mark.parametrize("damage", ["truncate", "extend", "remove", "empty"])
def test_a_file_of_another_length_is_found_and_named(damage: str, tmp_path: Path) -> None:
    older, path = _commit(tmp_path, 2, 1, "older"), _commit(tmp_path, 4, 1, "old")
    for name in ["learner/state/file-1.pt", "file-0.pt", checkpoints.MANIFEST]:
        original = (path / name).read_bytes()
        if damage == "remove":
            (path / name).unlink()
        else:
            new = {"truncate": original[:-1], "extend": original + b"x", "empty": b""}[damage]
            (path / name).write_bytes(new)
        with pytest.raises(BadCheckpoint, match=name):
            verify(path)
        found = newest_verified(tmp_path)
        assert found is not None and found.path == older and name in found.rejected[0]
        assert path.exists()
        (path / name).write_bytes(original)


def test_retention_spares_what_others_still_load_from(tmp_path: Path) -> None:
    paths = [_commit(tmp_path, step, 1, "x") for step in (1, 2, 3, 4)]
    checkpoints.prune(tmp_path, 1, {paths[1]})
    assert {path.name for path in checkpoints.root(tmp_path).iterdir()} == {"step-2", "step-4"}


# -- the mirror ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "mirror")
    import fsspec

    fsspec.filesystem("memory").store.clear()
    return "memory://mirror"


def test_a_lost_disk_is_replaced_by_the_mirror(url: str, tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", Mirror(url, "run")
    for step in (2, 4, 6):
        mirror.push(_commit(run, step, 1, f"text {step}"))
        mirror.prune(2)
    assert mirror.steps() == [6, 4]
    shutil.rmtree(run)
    for _ in range(2):
        found = recover(run, url)
        assert found is not None and (found.step, found.path) == (6, run / "checkpoints" / "step-6")
        assert _told(run) == (6, "text 6")
    assert recover(tmp_path / "other", url) is None


def test_what_the_mirror_lost_is_passed_over(url: str, tmp_path: Path) -> None:
    """The newest misses a file, the one before has a flipped byte; the next is taken, and all are named."""
    run, mirror = tmp_path / "run", Mirror(url, "run")
    for step in (2, 4, 6):
        mirror.push(_commit(run, step, 1, f"text {step}"))
    mirror._fs.rm_file(f"{mirror.root}/step-6/file-0.pt")
    mirror._fs.pipe_file(f"{mirror.root}/step-4/file-0.pt", b"sext 4 0")
    shutil.rmtree(run)
    found = recover(run, url)
    assert found is not None and found.step == 2
    assert ["step-6/file-0.pt" in found.rejected[0], "file-0.pt" in found.rejected[1]] == [True, True]


def test_a_damaged_newest_is_fetched_again_and_the_damaged_one_kept(url: str, tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", Mirror(url, "run")
    for step in (2, 4):
        mirror.push(_commit(run, step, 1, f"text {step}"))
    (run / "checkpoints" / "step-4" / "file-0.pt").write_text("damaged")
    found = recover(run, url)
    assert found is not None and found.step == 4 and "file-0.pt" in found.rejected[0]
    assert (run / "checkpoints" / "bad-step-4").exists()


def test_a_mirror_does_not_bring_back_an_attempt_that_was_given_up(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Mirror(url, "run").push(_commit(run, 8, 1, "given up"))
    shutil.rmtree(run)
    _commit(run, 4, 2, "goes on")
    found = recover(run, url)
    assert found is not None and found.step == 4 and "given up by attempt 2" in found.rejected[0]


def test_a_mirror_that_cannot_be_read_matters_only_where_nothing_else_verifies(tmp_path: Path) -> None:
    file = tmp_path / "mirror"
    file.write_text("no folder")
    with pytest.raises(BadCheckpoint, match=r"checkpoint\.mirror .* cannot be read"):
        recover(tmp_path / "run", str(file / "x"))
    _commit(tmp_path / "run", 4, 1, "here")
    found = recover(tmp_path / "run", str(file / "x"))
    assert found is not None and found.step == 4 and "cannot be read" in found.rejected[0]


def test_a_damaged_file_is_not_spread(tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", Mirror(str(tmp_path / "mirror"), "run")
    path = _commit(run, 4, 1, "x")
    (path / "file-0.pt").write_text("damaged")
    with pytest.raises(BadCheckpoint, match=r"file-0\.pt: it changed after the commit"):
        mirror.push(path)
    assert mirror.steps() == []


def test_an_upload_cut_at_any_act_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """The mirror's manifest comes last and goes first, also where a step is mirrored again."""
    at, finished = 0, False
    while not finished:
        at += 1
        run, place = tmp_path / f"run-{at}", str(tmp_path / f"mirror-{at}")
        mirror = Mirror(place, run.name)
        mirror.push(_commit(run, 2, 1, "older"))
        mirror.push(_commit(run, 4, 1, "old"))
        path = _commit(run, 4, 2, "new")
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, at)
            try:
                mirror.push(path)
                finished = True
            except Died:
                pass
        shutil.rmtree(run)
        found = recover(run, place)
        assert found is not None and _told(run) in ((4, "new"), (4, "old"), (2, "older"))
        assert not found.rejected
    assert at > 4


def test_a_failing_mirror_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mirror = tmp_path / "run", Mirror(str(tmp_path / "mirror"), "run")
    mirroring = Mirroring(mirror, run, keep=1)
    first, second = _commit(run, 2, 1, "x"), _commit(run, 4, 1, "y")

    def refused(*_: Any) -> None:
        raise ConnectionError("no route to the store")

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "push", refused)
        mirroring.offer(first)
        mirroring.finish(10)
    assert mirroring.metrics() == {"mirror/step": -1.0, "mirror/failures": 1.0}
    said = json.loads((run / "mirror.json").read_text())
    assert said == {"step": -1, "failures": 1, "error": "ConnectionError: no route to the store"}
    mirroring.offer(second)
    mirroring.finish(10)
    assert mirroring.metrics() == {"mirror/step": 4.0, "mirror/failures": 1.0}
    assert json.loads((run / "mirror.json").read_text())["error"] is None
    assert mirroring.held == set() and mirror.steps() == [4]


def test_a_hanging_mirror_is_left_behind_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    run, released = tmp_path / "run", threading.Event()
    mirror = Mirror(str(tmp_path / "mirror"), "run")
    monkeypatch.setattr(mirror, "push", lambda _: released.wait(60))
    mirroring = Mirroring(mirror, run, keep=1)
    path = _commit(run, 2, 1, "x")
    mirroring.offer(path)
    mirroring.finish(0.05)
    assert mirroring.failures == 1 and mirroring.held == {path}
    assert "took longer" in json.loads((run / "mirror.json").read_text())["error"]
    released.set()


def test_an_unusable_url_is_refused_before_anything_starts() -> None:
    from pipelines.settings_errors import SettingsError

    with pytest.raises(SettingsError, match=r"checkpoint\.mirror: 'nosuch://x'"):
        Mirror("nosuch://x", "run")
