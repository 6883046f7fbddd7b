"""What a version is: every byte of its folder."""

from __future__ import annotations

from pathlib import Path

from actors.checkpoints import MANIFEST, begin, commit
from serving.replicas.integrity import digest_of, version_of


def model(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_same_files_are_the_same_version_wherever_they_lie(tmp_path: Path) -> None:
    one, other = version_of(model(tmp_path / "a")), version_of(model(tmp_path / "b"))
    assert one.digest == other.digest and one.id == other.id == f"v-{one.digest[:12]}"
    assert one.path != other.path


def test_any_changed_byte_or_name_is_another_version(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    before = digest_of(folder)
    (folder / "config.json").rename(folder / "other.json")
    renamed = digest_of(folder)
    model(folder, b"x")
    assert len({before, renamed, digest_of(folder)}) == 3


def test_a_committed_checkpoint_is_known_by_its_manifest(tmp_path: Path) -> None:
    model(begin(tmp_path, 4))
    folder = commit(tmp_path, 4, attempt=1, facts={})
    before = digest_of(folder)
    assert (folder / MANIFEST).is_file() and before != digest_of(model(tmp_path / "without"))
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + " ")
    assert digest_of(folder) != before
