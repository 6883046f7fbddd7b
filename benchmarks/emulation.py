"""A run in one process and in real time: the real loop, ledger, admission and gates, with emulated work."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.gate import Gate
from actors.ledger import Ledger
from benchmarks.chaos.light import built, shown
from pipelines.loop import Limits, LocalProducer, drive
from pipelines.planning.rates import Rates
from pipelines.planning.simulation import Setup
from pipelines.types import Behaviour, Group, Lease, Receipt, Response, Rollout, Score

FLOW_STEPS = 40
CHUNKS = 8  # looks at the company during a group
SHAPE = 4.0  # of the gamma distribution of sizes: spread 0.5
EMULATED = Rates(
    sample_s=0.02,
    latency_s=0.12,
    score_s=0.004,
    step_fixed_s=0.15,
    publish_s=0.02,
    transfer_s=0.01,
    adopt_s=0.03,
    spread=SHAPE**-0.5,
)
FLOWS = tuple(
    Setup(generators=generators, groups_per_step=12, max_lag=max_lag)
    for generators, max_lag in ((1, 0), (1, 2), (2, 1), (2, 2), (3, 2), (8, 0), (8, 2))
)


class _Generator:
    def __init__(self, name: str) -> None:
        self.gate, self.version = Gate(name), -1

    async def decode(self, seed: int) -> int:
        """Sample for one group; the version that it did it with."""
        size = random.Random(seed).gammavariate(SHAPE, 1 / SHAPE)
        async with self.gate.pass_through(60.0):
            version = self.version
            for _ in range(CHUNKS):
                each_s = EMULATED.latency_s + (self.gate.inside - 1) * EMULATED.sample_s
                await asyncio.sleep(size * each_s / CHUNKS)
            return version

    async def adopt(self) -> None:
        if self.version >= 0:
            await asyncio.sleep(EMULATED.transfer_s)
        async with self.gate.closed(60.0):
            if self.version >= 0:
                await asyncio.sleep(EMULATED.adopt_s)
            self.version += 1


class _Prompts:
    def __init__(self) -> None:
        self._cursor = 0

    async def next(self, limit: int) -> Sequence[Any]:
        first, self._cursor = self._cursor, self._cursor + limit
        return [(cursor, 0, str(cursor), [None]) for cursor in range(first, self._cursor)]


class _Run:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.admission = setup.admission(FLOW_STEPS)
        self.ledger = Ledger("flow", 1, self.admission)
        self.generators = [_Generator(f"generator-{index}") for index in range(setup.generators)]
        self.scorers = asyncio.Semaphore(setup.scorers)
        self.published, self.news = 0, asyncio.Condition()
        self.body = _body()

    def versions(self) -> Mapping[int, int]:
        return {index: one.version for index, one in enumerate(self.generators)}

    async def play(self) -> list[dict[str, Any]]:
        for one in self.generators:
            await one.adopt()
        following = [asyncio.create_task(self._follow(one)) for one in self.generators]
        learning = asyncio.create_task(self._learn())
        producer = LocalProducer(self._produce)
        await drive(_Prompts(), producer, self.ledger, self, self.admission, asyncio.Event(), Limits())
        steps = await learning
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        self.ledger.check()
        return steps

    async def _follow(self, generator: _Generator) -> None:
        while True:
            async with self.news:
                await self.news.wait_for(lambda: self.published > generator.version)
            await generator.adopt()

    async def _produce(self, lease: Lease, parcel: Any) -> Receipt:
        version = await self.generators[lease.generator].decode(lease.seed)
        async with self.scorers:
            await asyncio.sleep(EMULATED.score_s)
        group = Group(id=lease.group, fence=lease.fence, comparisons=self.body, media={}, version=version)
        return await self.ledger.accept(group)

    async def _learn(self) -> list[dict[str, Any]]:
        """As `actors.learner_loop.Loop` does it; the metrics of all steps."""
        for step in range(1, FLOW_STEPS + 1):
            began = time.monotonic()
            await self.ledger.pull(1, step, 0, 1)
            waited = time.monotonic() - began
            await asyncio.sleep(EMULATED.step_s(self.setup.ranks))
            if self.admission.publishes(step):
                await asyncio.sleep(EMULATED.publish_s)
                async with self.news:
                    self.published += 1
                    self.news.notify_all()
                await self.ledger.published(self.published)
            await self.ledger.trained(1, step, {"seconds/wait": waited})
        return await self.ledger.progress(0)


def _body() -> Any:
    """What every group holds; nobody reads it."""
    prompt, media = shown(0, 2)
    [picture] = media.values()
    behaviour = Behaviour(stream="policy", decoder={}, oldest=0, newest=0, logps=(-1.0,), digest="")
    drawn = [
        Rollout(prompt=prompt, response=Response(tokens=(token,), text=str(token)), behaviour=behaviour)
        for token in (1, 2)
    ]
    lease = Lease(group="any", fence=1, cursor=0, seed=0, generator=0)
    scores = [Score(value=1.0), Score(value=0.0)]
    return built(lease, prompt, picture, picture, drawn, scores).comparisons


def flow(setup: Setup) -> list[dict[str, Any]]:
    """Metrics of the steps of such a run."""

    async def play() -> list[dict[str, Any]]:
        return await _Run(setup).play()

    return asyncio.run(play())
