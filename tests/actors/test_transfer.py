"""Buckets, folders and what a taker makes of a shipment that does not arrive, with plain values."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.proof import judge_bytes, tensor_digest
from actors.transfer import Folders, Shipment, in_buckets, receive
from pipelines.loop import RoleFailed
from pipelines.types import WeightVersion

ARRAYS = {f"layer.{i}.weight": np.full((4, i + 1), i, np.float32) for i in range(6)}


def version(number: int = 0, attempt: int = 1) -> WeightVersion:
    manifest = {name: tensor_digest(array) for name, array in ARRAYS.items()}
    return WeightVersion(
        attempt=attempt, number=number, step=number, stream="policy", manifest=manifest, canary=(0.0,)
    )


def received(shipment: Shipment, timeout_s: float = 10) -> dict[str, Any]:
    return asyncio.run(receive("weight version 0", shipment, timeout_s))


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(1, 60))
def test_buckets_keep_the_order_and_are_as_full_as_they_may(sizes: list[int], most: int) -> None:
    tensors = [(str(index), np.zeros(size, np.uint8)) for index, size in enumerate(sizes)]
    buckets = list(in_buckets(tensors, most))
    assert [name for bucket in buckets for name in bucket] == [name for name, _ in tensors]
    filled = [sum(array.nbytes for array in bucket.values()) for bucket in buckets]
    assert all(size <= most or len(bucket) == 1 for size, bucket in zip(filled, buckets, strict=True))
    firsts = [next(iter(bucket.values())).nbytes for bucket in buckets]
    assert all(full + first > most for full, first in zip(filled, firsts[1:], strict=False))


def test_a_bucket_leaves_before_the_next_one_is_gathered() -> None:
    gathered: list[int] = []

    def stream() -> Any:
        for index in range(6):
            gathered.append(index)
            yield str(index), np.zeros(10, np.uint8)

    buckets = in_buckets(stream(), 20)
    assert list(next(buckets)) == ["0", "1"] and gathered == [0, 1, 2]  # the third did not fit any more


@pytest.mark.parametrize("lost", range(3))
def test_a_bucket_that_is_lost_is_named(lost: int) -> None:
    async def gone() -> Any:
        raise ConnectionError("owner died")

    buckets: list[Any] = list(in_buckets(ARRAYS.items(), 150))
    assert len(buckets) == 3

    async def scenario() -> None:
        buckets[lost] = gone()
        with pytest.raises(RoleFailed) as caught:
            await receive("weight version 0", Shipment(buckets=tuple(buckets)), 10)
        assert (caught.value.reason, caught.value.role, caught.value.retry) == (
            "transfer_cut",
            "publisher",
            True,
        )
        assert f"weight version 0: bucket {lost + 1} of 3" in caught.value.detail

    asyncio.run(scenario())


def test_a_bucket_that_never_comes_has_a_deadline() -> None:
    async def scenario() -> None:
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with pytest.raises(RoleFailed, match=r"bucket 1 of 1 did not arrive: none in 0\.01 s"):
            await receive("weight version 0", Shipment(buckets=(never,)), 0.01)

    asyncio.run(scenario())


def written(root: Path, made: WeightVersion) -> str:
    folders = Folders(root)
    for bucket in in_buckets(ARRAYS.items(), 150):
        folders.hold(made.number, bucket)
    return folders.publish(made)


def test_a_folder_holds_what_was_sent(tmp_path: Path) -> None:
    folder = written(tmp_path, version())
    assert judge_bytes(version(), received(Shipment(folder=folder))).result == "proved"
    told = json.loads((Path(folder) / "manifest.json").read_text())
    assert (told["version"], told["digest"], told["buckets"]) == (0, version().digest, 3)


def test_bfloat16_survives_the_disk_as_its_bits(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.hold(0, {"w": np.asarray([0x3F80], np.uint16)})
    [array] = received(Shipment(folder=folders.publish(version()))).values()
    assert array.dtype == np.uint16 and array.tolist() == [0x3F80]


def test_the_last_two_folders_are_kept_and_a_newer_attempt_takes_the_place_of_an_older(
    tmp_path: Path,
) -> None:
    for number in range(4):
        written(tmp_path, version(number))
    written(tmp_path, version(3, attempt=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["version-2", "version-3"]
    assert json.loads((tmp_path / "version-3" / "manifest.json").read_text())["attempt"] == 2


@pytest.mark.parametrize("held", range(3))
def test_a_writer_that_dies_after_any_bucket_leaves_nothing_to_read(tmp_path: Path, held: int) -> None:
    """And the next one does not mix its buckets with those that are left."""
    first = Folders(tmp_path)
    for bucket in list(in_buckets(ARRAYS.items(), 150))[:held]:
        first.hold(0, bucket)
    assert not list(tmp_path.glob("version-*"))
    folder = written(tmp_path, version())
    assert len(list(Path(folder).glob("*.safetensors"))) == 3
    assert judge_bytes(version(), received(Shipment(folder=folder))).result == "proved"


@pytest.mark.parametrize("damage", ["missing", "cut", "no manifest", "no folder"])
def test_a_damaged_folder_is_a_cut_transfer(tmp_path: Path, damage: str) -> None:
    folder = Path(written(tmp_path, version()))
    second = folder / "bucket-00001.safetensors"
    if damage == "missing":
        second.unlink()
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        folder = tmp_path / "version-9"
    with pytest.raises(RoleFailed) as caught:
        received(Shipment(folder=str(folder)))
    assert caught.value.reason == "transfer_cut" and str(tmp_path) in caught.value.detail


def test_a_flipped_bit_on_disk_is_not_what_was_published(tmp_path: Path) -> None:
    folder = Path(written(tmp_path, version()))
    second = folder / "bucket-00001.safetensors"
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    assert judge_bytes(version(), received(Shipment(folder=str(folder)))).result == "failed"
