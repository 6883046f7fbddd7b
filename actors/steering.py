"""How large the pools should be, by a user's request or demand; full object stores; the run's status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.nodes import Nodes
from actors.pool import Pool
from pipelines import control
from pipelines.journal import Journal
from pipelines.scaling import Role, Scaler, Signals, follower

PRESSED, RELIEVED = 0.8, 0.7  # share of an object store in use at which leasing stops, and may go on
# What a full store holds may be weights, which no waiting removes: then Ray spills, and the run goes on.
HOLD_S = 60.0
LOOK_S = 1.0  # between two questions to Ray's head


class Steering:
    """Sets `Pool.wanted`; whoever calls `steer` sees that it comes about."""

    def __init__(
        self,
        pools: Mapping[Role, Pool],
        nodes: Nodes,
        journal: Journal,
        folder: Path | None,
        signals: Callable[[], Signals] | None,
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._pools, self._nodes, self._journal = pools, nodes, journal
        self._folder, self._signals, self._facts = folder, signals, facts
        self._scaler = Scaler(pools["generator"].bounds)
        self._full: dict[str, tuple[float, float]] = {}  # node -> share of its store in use, full since
        self._looked = float("-inf")
        stale = control.read_request(folder) if folder is not None else None
        self._answered = stale.id if stale is not None else None  # of an earlier start of this run
        self._answer: dict[str, str] | None = None

    @property
    def pressed(self) -> dict[str, float]:
        """Node -> share of its object store in use, of those that are too full."""
        return {node: round(share, 3) for node, (share, _) in self._full.items()}

    @property
    def holds_back(self) -> bool:
        """Whether nothing should be leased for now: more groups would only spill, or find no room."""
        return any(time.monotonic() - since < HOLD_S for _, since in self._full.values())

    def disturbed(self) -> None:
        """Members were lost or have to prove anew: what demand looked like meanwhile does not count."""
        self._scaler.changed(time.monotonic())

    async def steer(self) -> None:
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            with suppress(Exception):  # Ray's head may be busy; what it said last holds
                self._press(await asyncio.to_thread(self._nodes.fullness))
        if self._folder is not None:
            request = await asyncio.to_thread(control.read_request, self._folder)
            if request is not None and request.id != self._answered:
                self._answered = request.id
                self._answer = {"id": request.id, "said": self._apply(request)}
        self._scale()

    async def tell(self, fleet: Mapping[str, Any]) -> None:
        """Write the run's status. A disk that is full does not end a run here."""
        if self._folder is not None:
            status = {**self._facts(), "fleet": fleet, "request": self._answer}
            with suppress(OSError):
                await asyncio.to_thread(control.write_status, self._folder, status)

    def _press(self, fullness: Mapping[str, float]) -> None:
        for node in {*fullness, *self._full}:
            share, known = fullness.get(node, 0.0), self._full.get(node)
            if share > (PRESSED if known is None else RELIEVED):
                self._full[node] = (share, time.monotonic() if known is None else known[1])
            else:
                self._full.pop(node, None)
            if (known is None) == (node in self._full):
                self._journal.write("pressure", node=node, on=known is None, full=round(share, 3))

    def _apply(self, request: control.Request) -> str:
        """What a user asked for, within the settings; gives what became of it."""
        if request.problem:
            return request.problem
        said: list[str] = []
        for role, asked in request.sizes.items():
            pool = self._pools[role]
            size = min(asked, pool.bounds.high or asked)
            limit = f" (asked for {asked}; the run's settings allow {size})" if size != asked else ""
            said.append(f"{role}s {pool.wanted} -> {size}{limit}")
            pool.pinned = True
            self._resize(pool, size, "a user's request")
        return ", ".join(said)

    def _scale(self) -> None:
        pool, now = self._pools["generator"], time.monotonic()
        if self._signals is None or pool.pinned or pool.bounds.low == pool.bounds.most:
            return
        if len(pool.among("serving")) != pool.wanted:  # nor is there anything to see while it changes
            return self._scaler.changed(now)
        signals, serving = self._signals(), pool.among("serving")
        idle = sum(not member.in_flight for member in serving) / len(serving)
        moment = replace(signals, held_back=min(signals.held_back, idle))  # who works is not held back yet
        size = self._scaler.wanted(pool.wanted, moment, now)
        if size == pool.wanted:
            return
        self._scaler.changed(now)
        self._resize(pool, size, "demand")
        for role in ("scorer", "perturber"):
            other = self._pools[role]
            if not other.pinned:
                self._resize(other, follower(other.bounds, size, pool.bounds), "demand")

    def _resize(self, pool: Pool, size: int, why: str) -> None:
        if size != pool.wanted:
            pool.wanted = size
            self._journal.write("resize", role=pool.role, wanted=size, why=why)
