"""Scenarios about weights that change under answers in flight, or do not arrive; run by
generator_scenarios.py."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Facts = dict[str, Any]


class Held:
    """In place of an engine's `step`: lets 24 answers come together, makes two tokens of each, and then
    waits until somebody takes them away."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.step, self.made = engine, engine.step, 0
        engine.step = self

    def __call__(self) -> Any:
        waiting = len(self.engine.output_processor.request_states)
        if self.made < 2 and waiting == 24:
            self.made += 1
            return self.step()
        if self.made == 2 and waiting < 24:
            self.engine.step = self.step
            return self.step()
        return []


async def under_way(bench: Any, first: int) -> list[asyncio.Task[Any]]:
    """Three answers to each of eight prompts, of which the engine has two tokens."""
    held = await bench.generator.client.on_engine(Held)
    tasks = [
        asyncio.create_task(bench.generator.sample(*bench.prompt(first + i), n=3, seed=i)) for i in range(8)
    ]
    while held.made < 2:
        await asyncio.sleep(0.001)
    return tasks


def parents(engine: Any) -> int:
    """Requests for several answers that vLLM still remembers."""
    return len(engine.output_processor.parent_requests)


def surprise(bench: Any, rollout: Any, numbers: list[int]) -> float:
    """Largest gap to the Hugging Face forward of the version that each token is said to be of."""
    media, tokens = bench.prompt(int(rollout.prompt.id[1:]))[1], rollout.response.tokens
    expected: dict[int, list[float]] = {}
    for number in set(numbers):
        bench.restore(number)
        expected[number] = bench.logps(rollout.prompt, media, tokens)
    told = [expected[number][index] for index, number in enumerate(numbers)]
    return float(np.abs(np.asarray(rollout.behaviour.logps) - told).max())


async def kept(bench: Any) -> Facts:
    """Answers in flight go on under the new weights, and say which tokens are whose."""
    generator, held = bench.generator, bench.generator.version
    generator.in_flight = "keep"
    before = await generator.client.on_engine(parents)
    tasks = await under_way(bench, 100)
    bench.restore(held)
    bench.move(1e-2)
    version = bench.publish(10)
    proof = await generator.adopt(*version)
    rollouts = [rollout for task in tasks for rollout in await task]
    generator.in_flight = "wait"
    facts: Facts = {"holds": proof.holds, "gaps": [], "swapped": [], "mixed": 0, "told": [], "digests": []}
    for rollout in rollouts:
        behaviour = rollout.behaviour
        spans = behaviour.versions or ((behaviour.newest, len(behaviour.logps)),)
        numbers = [number for number, count in spans for _ in range(count)]
        facts["told"].append(
            len(numbers) == len(rollout.response.tokens) == len(behaviour.logps)
            and (numbers[0], numbers[-1]) == (behaviour.oldest, behaviour.newest)
            and numbers == sorted(numbers)
        )
        facts["gaps"].append(surprise(bench, rollout, numbers))
        if len(spans) > 1:
            facts["mixed"] += 1
            facts["swapped"].append(surprise(bench, rollout, [held] * len(numbers)))
        facts["digests"].append(behaviour.digest == version[0].digest or behaviour.newest == held)
    bench.restore(10)
    left = await generator.client.on_engine(parents)
    return {**facts, "left": left - before, "in_flight": (await generator.health())["in_flight"]}


async def aborted(bench: Any) -> Facts:
    """Answers in flight are given up, with a reason that says that nobody is to blame."""
    generator = bench.generator
    generator.in_flight = "abort"
    tasks = await under_way(bench, 200)
    version = bench.publish(11)
    proof = await generator.adopt(*version)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    again = await generator.sample(*bench.prompt(200), n=3, seed=0)
    generator.in_flight = "wait"
    reasons = [getattr(error, "reason", type(error).__name__) for error in ended]
    return {
        "holds": proof.holds,
        "reasons": sorted(set(reasons)),
        "retry": all(getattr(error, "retry", False) for error in ended),
        "again": [rollout.behaviour.newest for rollout in again],
        "counted": generator._gate.aborted,
        "left": await generator.client.on_engine(lambda engine: engine.get_num_unfinished_requests()),
    }


async def cut(bench: Any) -> Facts:
    """A transfer that ends after any bucket, or that arrives wrong, leaves the old weights as they were."""
    from actors.transfer import Shipment, in_buckets
    from pipelines.loop import RoleFailed

    generator, held = bench.generator, bench.generator.version
    canary = bench.canaries[0]
    before = await generator.logprob(canary.prompt, canary.media, canary.tokens)
    bench.move(1e-2)
    version, arrays = bench.publish(12)
    buckets = list(in_buckets(arrays.items(), 2**20))

    async def lost() -> Any:
        raise ConnectionError("the publisher is gone")

    facts: Facts = {"buckets": len(buckets), "reasons": [], "same": [], "versions": [], "served": []}
    for k in range(len(buckets)):
        try:
            await generator.adopt(version, Shipment(buckets=(*buckets[:k], lost(), *buckets[k + 1 :])))
        except RoleFailed as error:
            facts["reasons"].append(error.reason)
            facts["named"] = error.detail
        after = await generator.logprob(canary.prompt, canary.media, canary.tokens)
        facts["same"].append(after == before)
        rollouts = await generator.sample(*bench.prompt(300), n=1, seed=0)
        facts["served"].append(rollouts[0].behaviour.newest == held)
    name = next(iter(buckets[-1]))
    wrong = {**buckets[-1], name: np.nextafter(buckets[-1][name], np.float32(9))}
    proof = await generator.adopt(version, Shipment(buckets=(*buckets[:-1], wrong)))
    after = await generator.logprob(canary.prompt, canary.media, canary.tokens)
    return {
        **facts,
        "cut_transfers": generator.cut_transfers,
        "wrong": [proof.bytes_received, after == before, bool((await generator.health())["quarantined"])],
        "healed": (await generator.adopt(version, Shipment(buckets=tuple(buckets)))).holds,
    }


async def by_disk(bench: Any) -> Facts:
    """A version that lies in a folder is proved like any other; one whose file is cut is not taken."""
    from actors.transfer import Folders, Shipment, in_buckets
    from pipelines.loop import RoleFailed

    with tempfile.TemporaryDirectory() as root:
        folders = Folders(Path(root))
        bench.move(1e-2)
        version, arrays = bench.publish(13)
        for bucket in in_buckets(arrays.items(), 2**20):
            folders.hold(version.number, bucket)
        folder = folders.publish(version)
        file = sorted(Path(folder).glob("*.safetensors"))[1]
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        try:
            await bench.generator.adopt(version, Shipment(folder=folder))
            reason = "none"
        except RoleFailed as error:
            reason = error.reason
        before = bench.generator.version
        file.write_bytes(whole)
        proof = await bench.generator.adopt(version, Shipment(folder=folder))
    return {"reason": reason, "before": before, "holds": proof.holds, "canary": proof.canary_change}


SYNCS = (kept, aborted, cut, by_disk)
