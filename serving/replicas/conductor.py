"""The one process that knows which version every replica is to serve; replicas and gateways ask it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serving.replicas.slots import Slots
from serving.wire import Routing, Standing, Version, over

NAME = "plumbline-conductor"
NAMESPACE = "plumbline"
LOOK_S = 1.0  # between two looks at the registries
HOLD_S = 1.0  # how long a replica's question is held when there is nothing to tell

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a registry says that a model's slots are to serve."""

    stable: Version
    canary: Version | None = None
    weight: float = 0.0
    previous: Version | None = None  # promoted before the stable one, for replicas that cannot load that


class Source(Protocol):
    """Where plans come from; every call may read files and is made in a thread."""

    def plan(self) -> Plan:
        """What the slots are to serve now."""
        ...

    def observe(self, slot: str, samples: Sequence[dict[str, Any]]) -> None:
        """Live measurements of a slot, in their order; they may take the canary back."""
        ...

    def history(self) -> list[dict[str, Any]]:
        """Decisions, oldest first; without paths."""
        ...


class Conductor:
    """Tells replicas which version to serve. It follows its sources, so a promotion by another process
    arrives by itself; it holds nothing that a restarted one would not find again.

    Args:
        sources: a model's public name -> where its plans come from.
        adapters: an adapter's public name -> the model beside which it is served, and its own version.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        adapters: Mapping[str, tuple[str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._adapters, self._clock = sources, dict(adapters or {}), clock
        self._slots: dict[str, Slots] = {}
        for model, source in sources.items():
            plan = source.plan()
            self._slots[model] = Slots(model, plan.stable, plan.canary, plan.weight, plan.previous)
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def wanted(self, model: str, standing: Standing) -> Version | None:
        """The version that this replica is to change over to now; None: it stays as it is.

        The answer comes within about HOLD_S, at once when there is something to tell. Raises KeyError for a
        model that is not served here.
        """
        self._look_on()
        slots = self._slots[model]
        told = slots.ask(standing, self._clock())
        if told is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), HOLD_S)
            told = slots.ask(standing, self._clock())
        return told

    async def routing(self, model: str | None = None) -> Routing | None:
        """Where the model's clients go (None: the first model's); None: no such model."""
        self._look_on()
        if model in self._adapters:
            base, adapter = self._adapters[model]
            found = self._slots[base].routing(self._clock())
            return replace(found, model=model, stable=over(found.stable, adapter))
        slots = self._slots.get(model) if model is not None else next(iter(self._slots.values()), None)
        return None if slots is None else slots.routing(self._clock())

    async def ready(self) -> bool:
        """Whether every model's stable version is served by a replica."""
        return all(slots.serves("stable", self._clock()) for slots in self._slots.values())

    async def models(self) -> list[str]:
        return [*self._slots, *self._adapters]

    async def standings(self) -> list[Standing]:
        now = self._clock()
        return [
            replace(standing, model=model)
            for model, slots in self._slots.items()
            for standing in slots.standings(now)
        ]

    async def observe(self, model: str, slot: str, samples: Sequence[dict[str, Any]]) -> None:
        """Live measurements of a slot's answers."""
        source = self._sources[self._adapters[model][0] if model in self._adapters else model]
        await asyncio.to_thread(source.observe, slot, samples)

    async def history(self) -> list[dict[str, Any]]:
        """Every model's decisions, each with the model's name."""
        return [
            {"model": model, **entry}
            for model, source in self._sources.items()
            for entry in await asyncio.to_thread(source.history)
        ]

    async def look(self) -> None:
        """Read every source once; one that cannot be read leaves its model as it is."""
        for model, source in self._sources.items():
            try:
                plan = await asyncio.to_thread(source.plan)
            except Exception as error:
                log.warning("%s: its registry cannot be read, so it stays as it is: %s", model, error)
                continue
            slots = self._slots[model]
            slots.previous = plan.previous
            if (slots.stable, slots.canary, slots.weight) != (plan.stable, plan.canary, plan.weight):
                slots.stable, slots.canary, slots.weight = plan.stable, plan.canary, plan.weight
                self._changed.set()
                self._changed = asyncio.Event()

    def _look_on(self) -> None:
        """The task lives in the loop of the calls, which does not exist yet when the actor is made."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A checkpoint that is served without a registry."""

    version: Version

    def plan(self) -> Plan:
        return Plan(stable=self.version)

    def observe(self, slot: str, samples: Sequence[dict[str, Any]]) -> None:
        """There is no canary to take back."""

    def history(self) -> list[dict[str, Any]]:
        return []
