from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import checkpoints
from actors.checkpoints import BadCheckpoint, StaleAttempt, newest_verified, verify


def _commit(run: Path, step: int, attempt: int = 1, text: str = "weights") -> Path:
    folder = checkpoints.begin(run, step)
    (folder / "model.safetensors").write_text(f"{text} {step}")
    (folder / "learner").mkdir()
    (folder / "learner" / "shard-0.pt").write_bytes(bytes(range(64)))
    return checkpoints.commit(run, step, attempt, {"ledger": {"trained": ["a", "b"]}})


def test_a_committed_checkpoint_verifies_and_keeps_its_facts(tmp_path: Path) -> None:
    path = _commit(tmp_path, 4, attempt=2)
    assert path == tmp_path / "checkpoints" / "step-4"
    found = newest_verified(tmp_path)
    assert found is not None and (found.step, found.manifest["attempt"], found.rejected) == (4, 2, ())
    assert found.manifest["ledger"] == {"trained": ["a", "b"]}
    assert set(found.manifest["files"]) == {"model.safetensors", "learner/shard-0.pt"}


def test_a_run_without_checkpoint_has_none(tmp_path: Path) -> None:
    assert newest_verified(tmp_path) is None
    checkpoints.begin(tmp_path, 3)  # begun, never committed
    assert newest_verified(tmp_path) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["model.safetensors", "learner/shard-0.pt"]),
    where=st.integers(0, 8),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_found_and_named(file: str, where: int, bit: int, tmp_path: Path) -> None:
    path = _commit(tmp_path, 1)
    target = path / file
    data = bytearray(target.read_bytes())
    data[where] ^= 1 << bit
    target.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=target.name):
        verify(path)


def test_a_bad_checkpoint_is_named_kept_and_passed_over(tmp_path: Path) -> None:
    older, newer = _commit(tmp_path, 1), _commit(tmp_path, 2)
    (newer / "learner" / "shard-0.pt").unlink()
    found = newest_verified(tmp_path)
    assert found is not None and found.path == older
    assert len(found.rejected) == 1 and "step-2/learner/shard-0.pt" in found.rejected[0]
    assert newer.exists()
    (older / "model.safetensors").write_text("weights")
    with pytest.raises(BadCheckpoint, match=r"expected 9 bytes, got 7"):
        newest_verified(tmp_path)


def test_without_a_manifest_it_is_no_checkpoint(tmp_path: Path) -> None:
    path = _commit(tmp_path, 1)
    (path / "manifest.json").unlink()
    with pytest.raises(BadCheckpoint, match="never committed"):
        verify(path)
    (path / "manifest.json").write_text('{"format": 1, ')
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        verify(path)


def test_files_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    path = _commit(tmp_path, 1)
    (path / "learner" / "planted.pt").write_text("x")
    with pytest.raises(BadCheckpoint, match=r"planted\.pt: the manifest does not name it"):
        verify(path)


def test_a_manifest_cannot_reach_outside(tmp_path: Path) -> None:
    path = _commit(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"sha256": "", "bytes": 0}
    (path / "manifest.json").write_bytes(checkpoints._sealed(manifest))
    with pytest.raises(BadCheckpoint, match="outside of the checkpoint"):
        verify(path)


def test_an_older_attempt_may_not_commit(tmp_path: Path) -> None:
    _commit(tmp_path, 4, attempt=2)
    with pytest.raises(StaleAttempt, match="attempt 1 may not commit"):
        _commit(tmp_path, 5, attempt=1)
    found = newest_verified(tmp_path)
    assert found is not None and found.step == 4


def test_a_newer_attempt_replaces_the_same_step(tmp_path: Path) -> None:
    _commit(tmp_path, 4, attempt=1, text="old")
    _commit(tmp_path, 4, attempt=2, text="new")
    found = newest_verified(tmp_path)
    assert found is not None and found.manifest["attempt"] == 2
    assert (found.path / "model.safetensors").read_text() == "new 4"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4"]


def test_remains_of_a_broken_commit_are_no_obstacle(tmp_path: Path) -> None:
    (checkpoints.begin(tmp_path, 7) / "half-written").write_text("x")
    path = _commit(tmp_path, 7)
    assert not (path / "half-written").exists()


@pytest.mark.parametrize(("damaged", "left"), [((), [9, 10]), ((10,), [9, 10]), ((9, 10), [2, 9, 10])])
def test_retention_never_removes_the_newest_that_verifies(
    damaged: tuple[int, ...], left: list[int], tmp_path: Path
) -> None:
    for step in (1, 2, 9, 10):
        _commit(tmp_path, step)
    for step in damaged:
        (tmp_path / "checkpoints" / f"step-{step}" / "model.safetensors").write_text("broken")
    checkpoints.prune(tmp_path, keep=2)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == left
