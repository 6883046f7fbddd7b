"""Buckets through Ray's object store: who holds them, and what a dead publisher leaves behind."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.proof import judge_bytes, tensor_digest
from actors.remote import named
from actors.transfer import in_buckets, receive
from actors.weights import Publisher
from pipelines.types import WeightVersion

pytestmark = pytest.mark.usefixtures("local_ray")
ARRAYS = {f"w{i}": np.full(2**18, i, np.float32) for i in range(4)}  # 1 MiB each


class Taker:
    """Pulls as a generator does."""

    async def take(self, version: WeightVersion, shipment: Any) -> str:
        return judge_bytes(version, await receive("weight version 0", shipment, 60)).result


async def published() -> tuple[Any, WeightVersion, Any]:
    publisher = ray.remote(Publisher).options(num_cpus=0, max_concurrency=100).remote(1, ray.put)
    manifest = {name: tensor_digest(array) for name, array in ARRAYS.items()}
    version = WeightVersion(attempt=1, number=0, step=0, stream="policy", manifest=manifest, canary=(0.0,))
    for bucket in in_buckets(ARRAYS.items(), 2**20):
        await publisher.hold.remote(1, 0, bucket)
    await publisher.publish.remote(version)
    _, [shipment] = await publisher.latest.remote()
    return publisher, version, shipment


def test_the_driver_passes_on_references_and_a_dead_publisher_leaves_all_or_nothing():
    async def scenario() -> None:
        taker: Any = ray.remote(Taker).options(num_cpus=0).remote()
        publisher, version, shipment = await published()
        assert len(shipment.buckets) == 4 and all(isinstance(b, ray.ObjectRef) for b in shipment.buckets)
        assert await taker.take.remote(version, shipment) == "proved"
        publisher, version, shipment = await published()  # nobody has pulled from this one
        ray.kill(publisher)
        with pytest.raises(RayActorError):
            while True:  # a kill takes a moment to arrive
                await publisher.newest.remote()
        try:
            assert await taker.take.remote(version, shipment) == "proved"  # the node still has every bucket
        except RayTaskError as error:
            failure = named(error, "generator")
            assert (failure.reason, failure.role, failure.retry) == ("transfer_cut", "publisher", True)
            assert "weight version 0: bucket" in failure.detail
        ray.kill(taker)

    asyncio.run(scenario())
