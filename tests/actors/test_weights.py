"""The publisher's protocol, with plain values in place of object references."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actors.weights import Publisher
from pipelines.types import TensorDigest, WeightVersion


def version(number: int, attempt: int = 1, names: tuple[str, ...] = ("w",)) -> WeightVersion:
    manifest = {name: TensorDigest(sha256="0" * 64, shape=(2,), dtype="float32") for name in names}
    return WeightVersion(
        attempt=attempt, number=number, step=number, stream="policy", manifest=manifest, canary=(0.0,)
    )


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(2, value, np.float32)}


def test_takers_receive_every_version_in_order():
    async def scenario() -> list[int]:
        publisher = Publisher(attempt=1, keep=3)
        for number in (0, 1, 2):
            await publisher.publish(version(number), tensors(number))
        seen, have = [], -1
        while (got := await publisher.next(after=have, timeout_s=0.05)) is not None:
            have = got[0].number
            assert got[1][0].buckets[0]["w"][0] == have
            seen.append(have)
        return seen

    assert asyncio.run(scenario()) == [0, 1, 2]


def test_a_taker_that_waits_is_woken_by_a_publication():
    async def scenario() -> int:
        publisher = Publisher(attempt=1)
        waiting = asyncio.create_task(publisher.next(after=-1, timeout_s=30))
        await asyncio.sleep(0)
        await publisher.publish(version(0), tensors(0))
        got = await waiting
        assert got is not None
        return got[0].number

    assert asyncio.run(scenario()) == 0


def test_only_the_newest_versions_are_held():
    async def scenario() -> int:
        publisher = Publisher(attempt=1, keep=2)
        for number in range(5):
            await publisher.publish(version(number), tensors(number))
        got = await publisher.next(after=-1, timeout_s=1)
        assert got is not None
        return got[0].number

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (version(1, attempt=0), "attempt 0 refused"),
        (version(0), "already published"),
        (version(2, names=("w", "v")), "differ in"),
    ],
)
def test_what_must_not_be_published_is_refused(late: WeightVersion, message: str):
    async def scenario() -> None:
        publisher = Publisher(attempt=1)
        await publisher.publish(version(0), tensors(0))
        with pytest.raises(ValueError, match=message):
            await publisher.publish(late, tensors(1))
        assert await publisher.newest() == 0

    asyncio.run(scenario())


def test_a_version_in_buckets_is_seen_by_nobody_before_it_is_whole():
    async def scenario() -> None:
        publisher, made = Publisher(attempt=1), version(0, names=("a", "b", "c"))
        for name in "ab":
            await publisher.hold(1, 0, {name: tensors(0)["w"]})
            assert await publisher.next(after=-1, timeout_s=0.001) is None
            assert await publisher.latest() is None and await publisher.newest() == -1
        await publisher.publish(made, {"c": tensors(0)["w"]})
        got = await publisher.latest()
        assert got is not None and [list(bucket) for bucket in got[1][0].buckets] == [["a"], ["b"], ["c"]]

    asyncio.run(scenario())


def test_buckets_of_an_unfinished_version_are_not_mixed_into_the_next():
    """A learner that was cut while it sent version 0 sends version 1 next; or fails and sends 0 once more."""

    async def scenario() -> None:
        publisher = Publisher(attempt=1)
        await publisher.hold(1, 0, {"v": tensors(0)["w"]})
        with pytest.raises(ValueError, match="differ in"):
            await publisher.publish(version(0), tensors(0))
        await publisher.publish(version(0), tensors(0))
        await publisher.hold(1, 1, {"v": tensors(1)["w"]})
        await publisher.publish(version(2), tensors(2))
        got = await publisher.latest()
        assert got is not None and got[1][0].buckets[0]["w"][0] == 2 and len(got[1][0].buckets) == 1

    asyncio.run(scenario())


def test_an_older_attempt_cannot_slip_in_a_bucket():
    async def scenario() -> None:
        publisher = Publisher(attempt=2)
        with pytest.raises(ValueError, match="weights of attempt 1 refused"):
            await publisher.hold(1, 0, tensors(0))

    asyncio.run(scenario())


def test_one_that_joins_gets_the_newest_with_the_reference_that_goes_with_it():
    async def scenario() -> None:
        publisher = Publisher(attempt=1)
        await publisher.publish(version(0), tensors(0))
        await publisher.refer(1, {"r": 1})
        await publisher.publish(version(1), folder="/runs/a/weights/version-1")
        got = await publisher.latest()
        assert got is not None
        made, [shipment, number, reference] = got
        assert (made.number, shipment.folder, number) == (1, "/runs/a/weights/version-1", 1)
        assert reference.buckets == ({"r": 1},)

    asyncio.run(scenario())


def test_the_digest_of_a_version_is_that_of_its_tensors_and_stream():
    from dataclasses import replace

    made = version(0, names=("a", "b"))
    same = replace(made, number=7, attempt=3, manifest=dict(reversed(list(made.manifest.items()))))
    assert made.digest == same.digest
    for other in (
        replace(made, stream="reference"),
        replace(made, adapter=True),
        version(0, names=("a", "c")),
        replace(made, manifest={**made.manifest, "a": replace(made.manifest["a"], sha256="1" * 64)}),
    ):
        assert other.digest != made.digest
