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
        publisher = Publisher(attempt=1)
        for number in (0, 1, 2):
            await publisher.publish(version(number), tensors(number))
        seen, have = [], -1
        while (got := await publisher.next(after=have, timeout_s=0.05)) is not None:
            have = got[0].number
            assert got[1][0]["w"][0] == have
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
