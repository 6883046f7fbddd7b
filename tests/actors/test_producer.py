"""The producer against real Ray actors that die, hang and raise."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import Any

import pytest
import ray

from actors.producer import RayProducer, Remote, reach
from pipelines.data.base import BadRow
from pipelines.loop import RoleFailed
from pipelines.types import Fault, Lease, Receipt

LEASE = Lease(group="g", fence=1, cursor=0, seed=0, generator=0)


class Scorer:
    """Does what the parcel says."""

    async def produce(self, lease: Lease, parcel: list[Any]) -> Receipt | Fault:
        match parcel[0]:
            case "die":
                os._exit(1)
            case "hang":
                await asyncio.sleep(60)
            case "raise":
                raise RuntimeError("out of cheese")
            case "bad row":
                raise BadRow("data.jsonl:3", "the row", "nothing", "a prompt")
            case "role":
                raise RoleFailed("quarantined", "generator", "version 3 not proved")
        return Receipt(group=lease.group, accepted=True, facts={"pid": float(os.getpid())})

    async def echo(self, value: int, *, times: int = 1) -> int:
        return value * times


@pytest.fixture(scope="module")
def scorers(local_ray: None) -> Any:
    actors = [ray.remote(Scorer).options(num_cpus=0, max_concurrency=8).remote() for _ in range(2)]
    yield actors
    for actor in actors:
        ray.kill(actor)


def produce(scorers: list[Any], *orders: str, timeout_s: float = 30.0) -> list[Receipt | Fault]:
    async def main() -> list[Receipt | Fault]:
        producer = RayProducer(scorers, timeout_s)
        return await asyncio.gather(*(producer.produce(LEASE, [order]) for order in orders))

    return asyncio.run(main())


def test_receipts_come_back_and_leases_are_spread(scorers: list[Any]) -> None:
    receipts = produce(scorers, "work", "work", "work", "work")
    assert len({r.facts["pid"] for r in receipts if isinstance(r, Receipt)}) == 2


@pytest.mark.parametrize(
    ("order", "role", "reason", "retry", "detail"),
    [
        ("raise", "scorer", "runtime_error", True, "out of cheese"),
        ("bad row", "scorer", "bad_row", False, "data.jsonl:3"),
        ("role", "generator", "quarantined", True, "version 3"),
    ],
)
def test_an_exception_is_named_by_its_cause(
    scorers: list[Any], order: str, role: str, reason: str, retry: bool, detail: str
) -> None:
    [fault] = produce(scorers, order)
    assert isinstance(fault, Fault)
    assert (fault.role, fault.reason, fault.retry, fault.group) == (role, reason, retry, "g")
    assert detail in fault.detail


def test_a_scorer_that_hangs_is_a_timeout(scorers: list[Any]) -> None:
    [fault] = produce(scorers, "hang", timeout_s=0.2)
    assert isinstance(fault, Fault) and (fault.role, fault.reason) == ("scorer", "timeout")


def test_a_scorer_that_dies_is_named_and_shunned(local_ray: None) -> None:
    actors = [ray.remote(Scorer).options(num_cpus=0).remote() for _ in range(2)]

    async def main() -> list[Receipt | Fault]:
        producer = RayProducer(actors, 30)
        first = await producer.produce(LEASE, ["die"])
        return [first, *[await producer.produce(LEASE, ["work"]) for _ in range(3)]]

    fault, *rest = asyncio.run(main())
    assert isinstance(fault, Fault) and fault.reason == "scorer_died" and fault.retry
    assert all(isinstance(outcome, Receipt) for outcome in rest)  # none went to the dead one
    ray.kill(actors[1])


def test_a_handle_is_called_like_the_object_and_travels(scorers: list[Any]) -> None:
    async def main(target: Any) -> int:
        return await target.echo(3, times=2)

    remote = reach(scorers[0], "scorer", 30)
    assert isinstance(remote, Remote)
    assert asyncio.run(main(remote)) == asyncio.run(main(pickle.loads(pickle.dumps(remote)))) == 6
    here = Scorer()
    assert reach(here, "scorer", 30) is here
    with pytest.raises(RoleFailed, match="actor: attribute_error"):
        asyncio.run(Remote(scorers[0]).no_such_method())
