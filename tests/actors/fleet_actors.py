"""Light actors of each role for a fleet on a real Ray: they start in half a second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import ray

from pipelines.types import Proof, WeightVersion


class Light:
    """Any role. `broken`: its constructor raises."""

    def __init__(self, name: str, broken: bool = False) -> None:
        if broken:
            raise ValueError("no such model")
        self._name = name
        self._version = -1
        self._in_flight = self._steps = 0
        self._go_on = asyncio.Event()

    async def start(self, canaries: Any) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def health(self) -> Mapping[str, Any]:
        self._steps += 1
        return {
            "alive": True,
            "pid": os.getpid(),
            "version": self._version,
            "in_flight": self._in_flight,
            "engine_steps": self._steps,
            "quarantined": None,
        }

    async def adopt(self, version: WeightVersion, shipment: Any) -> Proof:
        self._version = version.number
        return Proof(
            version=version.number,
            generator=self._name,
            bytes_received="proved",
            elements_loaded="proved",
            canary_change="proved",
            caches_fresh="proved",
            detail={},
            seconds=0.0,
        )

    async def work(self) -> int:
        """A request that ends when `go_on` is called; gives the version it was answered by."""
        self._in_flight += 1
        await self._go_on.wait()
        self._in_flight -= 1
        return self._version

    async def go_on(self) -> None:
        self._go_on.set()


class RayWorld:
    """Makers. `broken`: roles and indices that cannot be constructed; `cpus`: that a scorer reserves."""

    def __init__(self) -> None:
        self.cpus = 0.0
        self.broken: set[tuple[str, int]] = set()

    def _make(self, role: str, index: int) -> Any:
        actor = ray.remote(Light).options(num_cpus=self.cpus if role == "scorer" else 0, max_concurrency=100)
        return actor.remote(f"{role}-{index}", (role, index) in self.broken)

    def generator(self, index: int) -> Any:
        return self._make("generator", index)

    def scorer(self, index: int) -> Any:
        return self._make("scorer", index)

    def perturber(self, index: int) -> Any:
        return self._make("perturber", index)
