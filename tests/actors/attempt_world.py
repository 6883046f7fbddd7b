"""Attempts in this process: the real ledger, publisher and checkpoints; a light learner, fleet and stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors import checkpoints
from actors.attempts import Attempts, Desk
from actors.ledger import Ledger
from actors.partners import Partners
from actors.plan import Plan
from actors.weights import Publisher
from pipelines.admission import admission_of
from pipelines.journal import Journal, read_lines
from pipelines.loop import RoleFailed
from pipelines.schedules import EasyToHard, InOrder
from pipelines.settings import Settings
from pipelines.types import Fault, Group, Lease, Receipt
from tests.actors.fleet_world import version
from tests.actors.ledger_calls import group

Hook = Callable[["World", str, int, int], Awaitable[None]]  # world, what, attempt, step
NAMES = ("ledger", "publisher", "prompts")


async def nothing(world: World, what: str, attempt: int, step: int) -> None:
    """What happens in a run that nothing happens to."""


@dataclass
class Stage:
    order: Any = field(default_factory=InOrder)
    freshness: int | None = None
    uses: int = 1
    replay: float = 0.0


@dataclass
class Recipe:
    stages: tuple[Stage, ...]

    def ends(self, steps: int) -> tuple[int, ...]:
        count = len(self.stages)
        return tuple(steps * (index + 1) // count for index in range(count))


class Mortal:
    """A service that can die: calls under way and later ones fail, as those of a dead actor do."""

    def __init__(self, body: Any, role: str) -> None:
        self._body, self._role, self._died = body, role, asyncio.Event()

    def die(self) -> None:
        self._died.set()

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = asyncio.ensure_future(getattr(self._body, name)(*args, **kwargs))
            end = asyncio.create_task(self._died.wait())
            try:
                await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
                if self._died.is_set():
                    raise RoleFailed(f"{self._role}_died", self._role, "its process is gone")
                return answer.result()
            finally:
                answer.cancel()
                end.cancel()
                await asyncio.gather(answer, end, return_exceptions=True)

        return call


@dataclass
class Prompts:
    """Counts up; an order permutes a block."""

    cursor: int = 0
    order: list[int] = field(default_factory=list)
    start: int = 0

    async def next(self, limit: int) -> list[tuple[int, int, str, list[Any]]]:
        first, self.cursor = self.cursor, self.cursor + limit
        return [(c, 0, f"p{self._place(c)}", [self._place(c)]) for c in range(first, self.cursor)]

    def _place(self, cursor: int) -> int:
        offset = cursor - self.start
        return self.start + self.order[offset] if 0 <= offset < len(self.order) else cursor

    async def seek(self, cursor: int) -> None:
        self.cursor = cursor

    async def reorder(self, order: list[int], start: int) -> None:
        self.order, self.start = order, start


@dataclass
class Scorer:
    world: World

    async def produce(self, lease: Lease, parcel: list[int], partners: Partners) -> Receipt | Fault:
        made = group(lease, self.world.fleet.version)
        self.world.delivered.append(made)
        return await partners.ledger.accept(made)

    async def survey(self, parcel: list[int], order: Any, seed: int, partners: Partners) -> float:
        await self.world.happen("survey", self.world.attempt, parcel[0])
        return -float(parcel[0])  # later prompts are easier


@dataclass
class Fleet:
    """One generator, which adopts what is published. `deaf`: it does not."""

    world: World
    version: int = -1
    deaf: bool = False
    publisher: Any = None
    lost_publisher: asyncio.Event = field(default_factory=asyncio.Event)
    following: asyncio.Task[None] | None = None

    async def attach(self, publisher: Any) -> None:
        await self.stop()
        self.publisher, self.version = publisher, -1
        self.lost_publisher.clear()
        self.following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        try:
            while True:
                got = await self.publisher.next(self.version, 1.0)
                if got is not None and not self.deaf:
                    self.version = got[0].number
                await asyncio.sleep(0.001)
        except RoleFailed:
            self.lost_publisher.set()

    async def orphaned(self) -> None:
        await self.lost_publisher.wait()
        raise RoleFailed("publisher_died", "publisher", "its process is gone")

    async def reached(self, number: int, deadline_s: float, *, one: bool = False) -> None:
        while self.version < number:
            await asyncio.sleep(0.002)

    def versions(self) -> dict[int, int]:
        return {0: self.version} if self.version >= 0 else {}

    def generator(self, index: int) -> str:
        return f"generator {index}"

    def serving(self, role: str) -> dict[int, Any]:
        return {0: Scorer(self.world) if role == "scorer" else role}

    def lost(self, role: str, index: int, why: str) -> None: ...

    def amended(self, fault: Fault, generator: int) -> Fault:
        return fault

    async def stop(self) -> None:
        if self.following is not None:
            self.following.cancel()
            await asyncio.gather(self.following, return_exceptions=True)


class Services:
    def __init__(self, world: World, plan: Plan) -> None:
        self.world, self.plan, self.killed = world, plan, 0
        settings = plan.settings
        self.admission = admission_of(settings, plan.recipe)
        self.books = Ledger(settings.name, plan.attempt, self.admission, wait_s=5, lease_s=5)
        self.ledger = Mortal(self.books, "ledger")
        self.publisher = Mortal(Publisher(plan.attempt), "publisher")
        self.prompts = Mortal(Prompts(), "data")

    @property
    def handles(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in NAMES}

    def kill(self) -> None:
        self.killed += 1

    async def fit(self, ranks: int) -> None:
        """As `actors.learner_loop.Loop`, without weights."""
        attempt, step, ledger = self.plan.attempt, self.plan.step, self.ledger
        number, committed = self.admission.due(step + 1), step
        await self.world.happen("load", attempt, step)
        for rank in range(ranks):
            await ledger.enlist(rank, "node-a", 100 * attempt + rank)
        await self._publish(number, step)
        published = step
        while True:
            shards = [await ledger.pull(attempt, step + 1, rank, ranks) for rank in range(ranks)]
            if shards[0].stop:
                break
            step += 1
            self.world.trained.append((attempt, step, [g.id for shard in shards for g in shard.groups]))
            await self.world.happen("train", attempt, step)
            if self.admission.publishes(step):
                number, published = number + 1, step
                await self._publish(number, step)
            await ledger.trained(attempt, step, {"loss": 1.0})
            if step % self.plan.settings.checkpoint.every == 0:
                await self._commit(step, number)
                committed = step
        if published != step:
            await self._publish(number + 1, step)
        await self.world.happen("last", attempt, step)
        if committed != step:
            await self._commit(step, number)

    async def _publish(self, number: int, step: int) -> None:
        await self.publisher.publish(version(number, self.plan.attempt), {})
        await self.ledger.published(number, "digest", step)
        await self.world.happen("published", self.plan.attempt, step)

    async def _commit(self, step: int, number: int) -> None:
        folder = checkpoints.begin(self.plan.run_dir, step)
        (folder / "weights").write_bytes(b"w" * step)
        await self.world.happen("commit", self.plan.attempt, step)
        facts = {"ledger": dict(await self.ledger.snapshot(step)), "weight_version": number}
        checkpoints.commit(self.plan.run_dir, step, self.plan.attempt, facts)


@dataclass
class World:
    run_dir: Path
    settings: Settings
    recipe: Recipe
    hook: Hook
    trained: list[tuple[int, int, list[str]]] = field(default_factory=list)  # attempt, step, groups
    delivered: list[Group] = field(default_factory=list)
    made: list[Services] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    nodes: dict[str, Mapping[str, float]] = field(default_factory=dict)
    error: BaseException | None = None
    task: asyncio.Task[Any] | None = None

    def __post_init__(self) -> None:
        self.stop, self.fleet = asyncio.Event(), Fleet(self)
        self.events = Journal(self.run_dir / "events.jsonl")
        plan = Plan(
            settings=self.settings,
            run_dir=self.run_dir,
            recipe=self.recipe,  # type: ignore[arg-type]
            source=None,  # type: ignore[arg-type]
            inventory=None,  # type: ignore[arg-type]
            model=self.run_dir,
            canaries=(),
        )
        desk = Desk(
            begin=self._begin,
            fleet=self.fleet,  # type: ignore[arg-type]
            events=self.events,
            note=self.metrics.append,
            stop=self.stop,
            stage=self._stage,
            evaluate=self._evaluate,
        )
        self.attempts = Attempts(plan, desk)

    @property
    def attempt(self) -> int:
        return self.attempts.plan.attempt

    @property
    def services(self) -> Services:
        return self.made[-1]

    async def happen(self, what: str, attempt: int = 0, step: int = 0) -> None:
        await self.hook(self, what, attempt, step)

    def _begin(self, plan: Plan) -> Services:
        self.made.append(Services(self, plan))
        return self.services

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        self.stages.append(name)
        yield

    async def _evaluate(self, when: str) -> None:
        await self.happen(f"evaluate {when}", self.attempt)
        self.measured.append(when)

    # -- what is asked of it afterwards ---------------------------------------------------------------------

    def told(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        lines = [line for line in read_lines(self.run_dir / "events.jsonl") if line["event"] == event]
        return [line for line in lines if fields.items() <= line.items()]

    @property
    def lineage(self) -> dict[int, tuple[int, list[str]]]:
        """Step -> the attempt whose work it is in the end, and the groups that it was trained on."""
        return {step: (attempt, groups) for attempt, step, groups in self.trained}

    @property
    def steps(self) -> list[tuple[int, int]]:
        return [(attempt, step) for attempt, step, _ in self.trained]


def settings(**sections: Mapping[str, Any]) -> Settings:
    """Four steps of two groups, a checkpoint after every second. Times may be shorter than a user's."""
    base = Settings.model_validate(
        {"learner": {"steps": 4, "groups_per_step": 2}, "checkpoint": {"every": 2}, "stop_grace_s": 60}
    )
    for name, values in sections.items():
        part = getattr(base, name)
        base = base.model_copy(
            update={name: part.model_copy(update=values) if isinstance(values, dict) else values}
        )
    return base


SURVEYED = EasyToHard(key="score_gap", parts=2)


def play(
    here: Path,
    hook: Hook = nothing,
    *,
    stages: int = 1,
    surveyed: bool = False,
    nodes: Mapping[str, Mapping[str, float]] | None = None,
    **sections: Any,
) -> World:
    """Run attempts while `hook` happens to them; the world afterwards, with the error that ended them."""

    async def main() -> World:
        order = SURVEYED if surveyed else InOrder()
        recipe = Recipe(tuple(Stage(order=order) for _ in range(stages)))
        world = World(here, settings(**sections), recipe, hook, nodes=dict(nodes or {}))
        world.task = asyncio.current_task()
        try:
            async with asyncio.timeout(30):
                await world.attempts.run()
        except TimeoutError:
            raise
        except Exception as error:
            world.error = error
        finally:
            await world.fleet.stop()
            world.events.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks outlive the attempts: {left}"
        return world

    return asyncio.run(main())
