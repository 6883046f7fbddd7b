"""The members of one role: who they are, how many are wanted, and how often starting one may fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.nodes import Place
from actors.remote import reach
from pipelines.loop import RunFailed
from pipelines.scaling import Bounds, Role

State = Literal["starting", "standby", "joining", "serving", "draining", "gone"]
FAILED_STARTS = 3  # in a row; then starting one more would only fail again
FOREVER_S = 1e8
BACKOFF_S = 0.5  # before the start after a failed one; doubles


@dataclass(eq=False)
class Member:
    """One worker. Its index is never used again."""

    role: Role
    index: int
    handle: Any
    spare: bool  # to be kept in reserve
    began: float = field(default_factory=time.monotonic)
    state: State = "starting"
    place: Place | None = None
    version: int = -1  # of the attached publisher, proved
    reference: int = 0  # number of the reference that it has; 0: the run's model
    in_flight: int = 0
    load: Mapping[str, float] = field(default_factory=dict[str, float])  # of its work so far, as it tells
    progress: Any = None  # grows while it works
    moved: float = field(default_factory=time.monotonic)  # when it last made progress, or had nothing to do
    adopting: bool = False
    promoted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def where(self) -> str:
        """For people."""
        if self.place is None:
            return "no node yet"
        return f"pid {self.place.pid}" + (f" on node {self.place.node[:8]}" if self.place.node else "")

    @property
    def remote(self) -> Any:
        """To call it; whoever does sets the deadline."""
        return reach(self.handle, self.name, FOREVER_S)


class Pool:
    """Members that are not gone, by index.

    `make`: starts a worker; `record`: told of every change of a member's state, with the reason.
    """

    def __init__(
        self,
        role: Role,
        bounds: Bounds,
        standbys: int,
        make: Callable[[int], Any],
        record: Callable[[Member, str], None],
    ) -> None:
        self.role: Role = role
        self.bounds, self.standbys = bounds, standbys
        self.wanted = bounds.start
        self.pinned = False  # by a user
        self.members: dict[int, Member] = {}
        self.left: dict[int, bool] = {}  # index of those that are gone -> whether it left on purpose
        self._make, self._record = make, record
        self._next = 0
        self._failures: list[str] = []  # causes of the starts in a row that failed
        self._failed_at = 0.0

    def among(self, *states: State) -> list[Member]:
        return [member for member in self.members.values() if member.state in states]

    @property
    def working(self) -> list[Member]:
        """Those that serve or are on their way to."""
        return [m for m in self.among("starting", "joining", "serving") if not m.spare]

    @property
    def spares(self) -> list[Member]:
        return [m for m in self.among("starting", "standby") if m.spare]

    @property
    def resting_s(self) -> float:
        """How long nothing is started after a failed start."""
        if not self._failures:
            return 0.0
        return max(0.0, self._failed_at + BACKOFF_S * 2 ** (len(self._failures) - 1) - time.monotonic())

    def add(self, *, spare: bool) -> Member:
        index, self._next = self._next, self._next + 1
        member = Member(self.role, index, self._make(index), spare)
        self.members[index] = member
        self._record(member, "a spare" if spare else f"{self.wanted} wanted")
        return member

    def promote(self) -> bool:
        """Let a spare that is ready join; False without one."""
        ready = [member for member in self.spares if member.state == "standby"]
        if not ready:
            return False
        ready[0].spare = False
        self.move(ready[0], "joining", "a spare takes a place")
        ready[0].promoted.set()
        return True

    def move(self, member: Member, state: State, why: str) -> None:
        if member.state == state or member.state == "gone":
            return
        if state == "gone":
            self.left[member.index] = member.state == "draining"
            del self.members[member.index]
            member.version = -1
        if state == "serving":
            self._failures.clear()
        member.state = state
        self._record(member, why)

    def surplus(self) -> list[Member]:
        """Those that should leave: first who does not serve yet, then who came last."""
        order = sorted(self.working, key=lambda m: (m.state == "serving", -m.index))
        spares = sorted(self.spares, key=lambda m: (m.state == "standby", -m.index))
        return order[: max(0, len(order) - self.wanted)] + spares[: max(0, len(spares) - self.standbys)]

    def start_failed(self, member: Member, why: str) -> None:
        """Count a member that was lost before it was ready. Several that were under way count as one.

        Raises:
            RunFailed: so many in a row that the next would fail as well.
        """
        if member.began < self._failed_at:
            return
        self._failed_at = time.monotonic()
        self._failures.append(f"{member.name} ({member.where}): {why}")
        if len(self._failures) >= FAILED_STARTS:
            causes = "; ".join(self._failures)
            raise RunFailed(f"{len(self._failures)} starts of a {self.role} in a row failed: {causes}")
