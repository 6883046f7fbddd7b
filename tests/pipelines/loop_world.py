"""A small world around the loop: the real ledger, fakes for the rest, random timings."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from actors.ledger import Ledger
from pipelines.admission import Admission, Stretch
from pipelines.loop import Limits, LocalProducer, drive
from pipelines.types import (
    Candidate,
    Comparison,
    Fault,
    Group,
    Lease,
    Message,
    Part,
    Preference,
    Prompt,
    Receipt,
    Response,
)

FAST = Limits(tick_s=0.002, rest_s=0.002, patience_s=5, drain_s=0.5)


def comparison(name: str) -> Comparison:
    prompt = Prompt(id=name, messages=(Message(role="user", parts=(Part(kind="text", text=name),)),))
    answers = tuple(Response(tokens=(token,), text=str(token)) for token in (1, 2))
    cells = tuple(Candidate(prompt=0, response=i, role=role) for i, role in enumerate(("w@x", "l@x")))
    edge = Preference(name="text", winner=0, loser=1)
    return Comparison(id=name, prompts=(prompt,), responses=answers, candidates=cells, preferences=(edge,))


@dataclass
class Prompts:
    """Counts up; ends after `rows`."""

    rows: int | None = None
    cursor: int = 0

    async def next(self, limit: int) -> list[tuple[int, int, str, list[Any]]]:
        stop = self.cursor + limit if self.rows is None else min(self.cursor + limit, self.rows)
        items = [(cursor, 0, f"p{cursor}", [cursor]) for cursor in range(self.cursor, stop)]
        self.cursor = stop
        return items


@dataclass
class Fleet:
    proved: dict[int, int]

    def versions(self) -> dict[int, int]:
        return dict(self.proved)


@dataclass
class World:
    """A ledger, generators whose version lags, and a learner that keeps its own log of what it trained."""

    steps: int = 5
    groups: int = 4
    lag: int = 1
    sync_every: int = 1
    rows: int | None = None
    generators: int = 2
    seed: int = 0
    ends: tuple[int, ...] = ()  # last steps of the stages before the last one
    timeout_s: float = 2  # of the producer
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = tuple(Stretch(last=last, max_lag=self.lag) for last in (*self.ends, self.steps))
        self.admission = Admission(sync_every=self.sync_every, groups_per_step=self.groups, stages=stages)
        self.ledger = Ledger("run", 1, self.admission, wait_s=5, **self.settings)
        self.prompts = Prompts(self.rows)
        self.fleet = Fleet(dict.fromkeys(range(self.generators), 0))
        self.random = random.Random(self.seed)
        self.stop = asyncio.Event()
        self.log: list[tuple[int, str, int]] = []  # step, group, version: written by the learner
        self.events: list[tuple[str, Any]] = []
        self.leases: list[Lease] = []
        self.live = self.most_live = 0

    async def nap(self) -> None:
        await asyncio.sleep(self.random.random() * 0.003)

    def group(self, lease: Lease, version: int, dropped: str | None = None) -> Group:
        made = () if dropped else (comparison(lease.group),)
        return Group(
            id=lease.group, fence=lease.fence, comparisons=made, media={}, version=version, dropped=dropped
        )

    async def produce(self, lease: Lease, parcel: Any) -> Receipt | Fault:
        self.leases.append(lease)
        version = self.fleet.proved[lease.generator]
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        await self.nap()
        self.live -= 1
        return await self.ledger.accept(self.group(lease, version))

    async def learn(self) -> None:
        tasks = []
        for step in range(1, self.steps + 2):
            shard = await self.ledger.pull(1, step, 0, 1)
            if shard.stop:
                break
            self.log += [(step, group.id, group.version) for group in shard.groups]
            self.events.append(("train", step))
            await self.nap()
            await self.ledger.trained(1, step, {})
            if self.admission.publishes(step):
                number = self.admission.due(step + 1)
                await self.ledger.published(number)
                tasks.append(asyncio.create_task(self.sync(number)))
        await asyncio.gather(*tasks)

    async def sync(self, number: int) -> None:
        for generator in self.fleet.proved:
            await self.nap()
            self.fleet.proved[generator] = max(number, self.fleet.proved[generator])

    async def drive(self, work: Any = None, limits: Limits = FAST) -> None:
        """Stage by stage, as a run does; prompts that a stage took and did not issue are taken again."""
        producer = LocalProducer(work or self.produce, timeout_s=self.timeout_s)
        roles = (self.prompts, producer, self.ledger, self.fleet, self.admission, self.stop, limits)
        for stage in range(len(self.admission.stages)):
            self.prompts.cursor = (await self.ledger.state()).cursor
            await drive(*roles, stage)
            if stage + 1 < len(self.admission.stages) and not self.stop.is_set():
                self.events.append(("stage over", stage))

    async def run(self, work: Any = None, limits: Limits = FAST) -> dict[str, Any]:
        await asyncio.wait_for(asyncio.gather(self.learn(), self.drive(work, limits)), 20)
        self.ledger.check()
        return await self.ledger.counts()


def run(world: World, work: Any = None, limits: Limits = FAST) -> dict[str, Any]:
    return asyncio.run(world.run(work, limits))
