"""The producer against real Ray actors that die, hang and raise."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
import ray

from actors.partners import Partners
from actors.producer import RayProducer
from actors.remote import Remote, reach
from pipelines.data.base import BadRow
from pipelines.loop import RoleFailed
from pipelines.types import Fault, Lease, Receipt

LEASE = Lease(group="g", fence=1, cursor=0, seed=0, generator=0)


class Scorer:
    """Does what the parcel says."""

    async def produce(self, lease: Lease, parcel: list[Any], partners: Partners) -> Receipt | Fault:
        assert partners.generator == f"generator {lease.generator}" and partners.ledger == "ledger"
        match parcel[0]:
            case "die":
                os._exit(1)
            case "hang":
                await asyncio.sleep(60)
            case "raise":
                raise RuntimeError("out of cheese")
            case "bad row":
                raise BadRow("data.jsonl:3", "the row", "nothing", "a prompt")
            case "generator dies":
                return RoleFailed("generator_died", "generator", "node b").fault(lease.group)
            case "perturber dies":
                detail = f"process 1 died: killed [actor {partners.perturbers[0]._actor_id.hex()}]"
                return RoleFailed("perturber_died", "perturber", detail).fault(lease.group)
            case "role":
                raise RoleFailed("quarantined", "generator", "version 3 not proved")
        return Receipt(group=lease.group, accepted=True, facts={"pid": float(os.getpid())})

    async def echo(self, value: int, *, times: int = 1) -> int:
        return value * times


class Roster:
    """The scorers that serve, by index, and what was reported lost."""

    def __init__(self, scorers: list[Any]) -> None:
        self.scorers, self.reported = dict(enumerate(scorers)), []

    def generator(self, index: int) -> str:
        if index > 1:
            raise RoleFailed("generator_left", "generator", f"generator-{index} is gone")
        return f"generator {index}"

    def serving(self, role: str) -> dict[int, Any]:
        return (
            self.scorers
            if role == "scorer"
            else {3: next(iter(self.scorers.values()), None), 4: "of this process"}
        )

    def lost(self, role: str, index: int, why: str) -> None:
        self.reported.append((role, index, why))

    def amended(self, fault: Fault, generator: int) -> Fault:
        return fault


@pytest.fixture(scope="module")
def scorers(local_ray: None) -> Any:
    actors = [ray.remote(Scorer).options(num_cpus=0, max_concurrency=8).remote() for _ in range(2)]
    yield actors
    for actor in actors:
        ray.kill(actor)


def produce(scorers: list[Any], *orders: str, timeout_s: float = 30.0) -> list[Receipt | Fault]:
    async def main() -> list[Receipt | Fault]:
        producer = RayProducer(Roster(scorers), "ledger", timeout_s)
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
        producer = RayProducer(roster, "ledger", 30)
        first = await producer.produce(LEASE, ["die"])
        return [first, *[await producer.produce(LEASE, ["work"]) for _ in range(3)]]

    roster = Roster(actors)

    fault, *rest = asyncio.run(main())
    assert isinstance(fault, Fault) and fault.reason == "scorer_died" and fault.retry
    assert re.match(r"process \d+ on [0-9.]+ died: its worker process has died", fault.detail)
    assert all(isinstance(outcome, Receipt) for outcome in rest)  # none went to the dead one
    assert [entry[:2] for entry in roster.reported] == [("scorer", 0)]
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


def test_generators_that_left_or_died_are_faults_and_deaths_are_reported(scorers: list[Any]) -> None:
    roster = Roster(scorers)
    producer = RayProducer(roster, "ledger", 30)
    gone = asyncio.run(producer.produce(replace(LEASE, generator=7), ["work"]))
    assert isinstance(gone, Fault) and (gone.reason, gone.retry) == ("generator_left", True)
    dead = asyncio.run(producer.produce(replace(LEASE, generator=1), ["generator dies"]))
    assert isinstance(dead, Fault) and dead.reason == "generator_died"
    assert roster.reported == [("generator", 1, "node b")]


def test_a_dead_perturber_is_reported_by_what_ray_calls_it(scorers: list[Any]) -> None:
    roster = Roster(scorers)
    dead = asyncio.run(RayProducer(roster, "ledger", 30).produce(LEASE, ["perturber dies"]))
    assert isinstance(dead, Fault) and dead.reason == "perturber_died"
    assert [(role, index) for role, index, _ in roster.reported] == [("perturber", 3)]


def test_without_a_scorer_work_waits_for_one_until_its_deadline(scorers: list[Any]) -> None:
    roster = Roster([])

    async def main() -> tuple[Any, Any]:
        nobody = await RayProducer(roster, "ledger", 0.1).produce(LEASE, ["work"])
        waiting = asyncio.create_task(RayProducer(roster, "ledger", 30).produce(LEASE, ["work"]))
        await asyncio.sleep(0.1)
        roster.scorers[3] = scorers[0]
        return nobody, await waiting

    nobody, served = asyncio.run(main())
    assert isinstance(nobody, Fault) and (nobody.reason, nobody.retry) == ("no_scorer", True)
    assert isinstance(served, Receipt)
