"""Workers of this process that fail as they are told, and a cluster that only takes notes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.fleet import Fleet
from actors.nodes import Needs, Nodes, Place
from actors.weights import Publisher
from pipelines.journal import Journal, read_lines
from pipelines.loop import RoleFailed
from pipelines.scaling import Bounds, Role, Sizes
from pipelines.types import Proof, WeightVersion

ONE = Bounds(low=1, start=1)


@dataclass
class Worker:
    """`fails`: what `start` raises; `unproved`: versions that it cannot prove; `cut`: adoptions that lose
    their weights on the way; `hangs`: methods that never return; `moves`: whether each question after its
    health finds it a step further."""

    role: Role
    index: int
    fails: Exception | None = None
    unproved: set[int] = field(default_factory=set[int])
    cut: int = 0
    hangs: set[str] = field(default_factory=set[str])
    dead: bool = False
    engine: bool = True
    quarantined: str | None = None
    in_flight: int = 0
    moves: bool = False
    steps: int = 0
    adopted: list[int] = field(default_factory=list[int])
    references: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])  # version before it
    ended: int = 0  # times that it was killed
    stopped: bool = False

    async def _do(self, what: str) -> None:
        if what in self.hangs:
            await asyncio.Event().wait()
        if self.dead:
            raise RoleFailed(f"{self.role}_died", f"{self.role}-{self.index}", "its process is gone")

    async def start(self, canaries: Any) -> None:
        await self._do("start")
        if self.fails is not None:
            raise self.fails

    async def health(self) -> Mapping[str, Any]:
        await self._do("health")
        self.steps += self.moves
        counter = "engine_steps" if self.role == "generator" else "progress"
        return {
            "alive": self.engine,
            "in_flight": self.in_flight,
            counter: self.steps,
            "quarantined": self.quarantined,
        }

    async def stop(self) -> None:
        await self._do("stop")
        self.stopped = True

    async def adopt_reference(self, shipment: Any) -> None:
        self.references.append((self.adopted[-1], *shipment.buckets))

    async def adopt(self, version: WeightVersion, shipment: Any) -> Proof:
        await self._do("adopt")
        if self.cut:
            self.cut -= 1
            raise RoleFailed("transfer_cut", "publisher", "bucket 2 of 3 did not arrive")
        holds = version.number not in self.unproved
        if holds:
            self.adopted.append(version.number)
        return Proof(
            version=version.number,
            generator=f"generator-{self.index}",
            bytes_received="proved",
            elements_loaded="proved" if holds else "failed",
            canary_change="proved",
            caches_fresh="proved",
            detail={} if holds else {"elements": {"missing": ["lm_head.weight"]}},
            seconds=0.25,
        )


@dataclass
class World(Nodes):
    """Makers and cluster in one. `shape`: what happens to each new worker before it is used."""

    shape: Callable[[Worker], None] = lambda worker: None
    made: dict[tuple[str, int], Worker] = field(default_factory=dict[tuple[str, int], Worker])
    placed: bool = True
    full: dict[str, float] = field(default_factory=dict[str, float])
    requests: list[Mapping[Role, int]] = field(default_factory=list[Mapping[Role, int]])

    def _make(self, role: Role, index: int) -> Worker:
        worker = self.made[role, index] = Worker(role, index)
        self.shape(worker)
        return worker

    def generator(self, index: int) -> Worker:
        return self._make("generator", index)

    def scorer(self, index: int) -> Worker:
        return self._make("scorer", index)

    def perturber(self, index: int) -> Worker:
        return self._make("perturber", index)

    def find(self, handle: Worker) -> Place | None:
        return Place(node="node-a", pid=1000 + handle.index) if self.placed else None

    def end(self, handle: Worker, place: Place | None) -> None:
        handle.ended += 1
        handle.dead = True

    def request(self, needs: Needs | None, wanted: Mapping[Role, int]) -> None:
        self.requests.append(dict(wanted))

    def fullness(self) -> dict[str, float]:
        return dict(self.full)

    @property
    def generators(self) -> list[Worker]:
        return [worker for (role, _), worker in sorted(self.made.items()) if role == "generator"]


@dataclass
class Scene:
    """A fleet at work. Time limits are short, and only ever bound how long something may take."""

    world: World
    fleet: Fleet
    publisher: Publisher
    path: Path

    async def publish(self, *numbers: int) -> None:
        for number in numbers:
            await self.publisher.publish(version(number), {})

    def states(self, role: str = "generator") -> dict[int, str]:
        return self._reported(role, "state")

    def under_way(self) -> dict[int, int]:
        """Index of each generator -> requests that the fleet believes it to work on."""
        return self._reported("generator", "in_flight")

    def _reported(self, role: str, what: str) -> dict[int, Any]:
        return {m["index"]: m[what] for m in self.fleet.report()["members"] if m["role"] == role}

    def events(self, kind: str = "member", **fields: Any) -> list[dict[str, Any]]:
        lines = [line for line in read_lines(self.path) if line["event"] == kind]
        return [line for line in lines if fields.items() <= line.items()]


def version(number: int, attempt: int = 1) -> WeightVersion:
    return WeightVersion(
        attempt=attempt, number=number, step=number, stream="policy", manifest={}, canary=(0.0,)
    )


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def sizes(generators: Bounds = ONE, standbys: int = 0) -> Sizes:
    return Sizes(generator=generators, scorer=ONE, perturber=ONE, standbys=standbys)


def play(
    here: Path,
    act: Callable[[Scene], Awaitable[None]],
    *,
    world: World | None = None,
    wanted: Sizes | None = None,
    started: bool = True,
    **options: Any,
) -> Scene:
    """Let `act` happen to a supervised fleet. A failure of the fleet is raised here."""

    async def main() -> Scene:
        path = here / "events.jsonl"
        journal, cluster = Journal(path), world or World()
        deadlines = {"health": 0.4, "progress": 0.4, "start": 5.0, "adopt": 5.0}
        limits = {f"{name}_timeout_s": options.pop(name, limit) for name, limit in deadlines.items()}
        fleet = Fleet(cluster, wanted or sizes(), journal, nodes=cluster, **limits, **options)
        scene = Scene(cluster, fleet, Publisher(attempt=1), path)
        work: list[asyncio.Future[Any]] = []
        try:
            if started:
                await fleet.start()
            await fleet.attach(scene.publisher)
            work = [asyncio.ensure_future(act(scene)), asyncio.ensure_future(fleet.supervise())]
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await fleet.stop()
            journal.close()
        return scene

    return asyncio.run(asyncio.wait_for(main(), 20))
