"""The loop: prompts become leases, leases become receipts. It holds no data and imports no framework.

    PromptStream --prompts--> drive --lease, parcel--> Producer --Group--> Ledger --Shard--> Learner
                                ^                         |                  |                  |
                                |<--------Receipt | Fault-+                  |                  v
                                |<--------LedgerState------------------------+              Publisher
                                +<--------versions---- Fleet <----------WeightVersion-----------+

| who              | waits for                                     | and gives up                       |
|------------------|-----------------------------------------------|------------------------------------|
| drive            | a receipt, a ledger change, a proved version  | after `patience_s` without any     |
| drive            | an answer of the ledger, the next prompts     | `call_s`, `patience_s`: RoleFailed |
| Ledger           | the receipt or the fault of one lease         | `lease_s`: the lease is void       |
| Producer         | the receipt of one lease                      | its own deadline: a `Fault`        |
| Ledger.pull      | enough fresh groups, or the end               | `wait_s`: TimeoutError with counts |
| Learner          | `Ledger.pull`                                 | as above                           |
| Fleet, generator | the next published version                    | the deadline of a weight sync      |

Nobody waits for the loop: it alone issues leases, so what it read of the ledger can only be too large.
A prompt travels as a *parcel*, a one-element list that only the scorer opens. In Ray it holds a reference, so
the driver never touches media; in one process it holds the row.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from pipelines.admission import Admission
from pipelines.types import Fault, Lease, Receipt

T = TypeVar("T")
Parcel = Sequence[Any]  # [(position, raw row)] or [a reference to it]
PromptItem = tuple[int, int, str, Parcel]  # cursor, epoch, prompt id, parcel
Phase = Literal["running", "finishing", "stopping", "ended", "failed"]
Verdict = Literal["drop", "again", "alone"]  # what becomes of a group whose lease failed
PROMPT_LOST = "prompt_lost"  # fault of a parcel that nobody can open: its stream is gone
GONE_S = 10.0  # that cancelled work gets to end


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class RoleFailed(RuntimeError):
    """A worker could not do its part. Becomes a `Fault` at the border of the producer."""

    def __init__(self, reason: str, role: str, detail: str, retry: bool = True) -> None:
        super().__init__(reason, role, detail, retry)  # the positional arguments make it picklable
        self.reason, self.role, self.detail, self.retry = reason, role, detail, retry

    def __str__(self) -> str:
        return f"{self.role}: {self.reason}: {self.detail}"

    @classmethod
    def of(cls, error: BaseException, role: str) -> RoleFailed:
        """Name an exception. A ValueError is about the input and a RunFailed about the run: the same work is
        not tried again."""
        if isinstance(error, RoleFailed):
            return error
        kind = "Timeout" if isinstance(error, TimeoutError) else type(error).__name__
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
        detail = f"{type(error).__name__}: {error}"
        return cls(name, role, detail, retry=not isinstance(error, ValueError | RunFailed))

    def fault(self, group: str) -> Fault:
        return Fault(group=group, reason=self.reason, role=self.role, detail=self.detail, retry=self.retry)


@dataclass(frozen=True, kw_only=True)
class LedgerState:
    """What the loop needs to know of the ledger. Counts are groups."""

    revision: int  # grows with every change
    phase: Phase  # from "stopping" on nothing is issued any more
    trained: int
    live: int  # leased + buffered + sealed
    leased: int
    buffered: int
    held_bytes: int  # of the buffered groups
    oldest_lease_s: float  # age of the oldest lease under way
    expired: frozenset[int]  # fences of leases that the ledger voided itself and that nobody has reported yet
    stage: int  # the open one: groups are leased for it
    cursor: int  # of the prompt stream: the first one that was never issued
    failure: str | None = None


class Prompts(Protocol):
    async def next(self, limit: int) -> Sequence[PromptItem]:
        """Up to `limit` prompts in order; none when the data is at its end."""
        ...


class Producer(Protocol):
    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        """Carry out one lease. Every failure is a `Fault`."""
        ...


class Ledger(Protocol):
    async def issue(self, prompt_id: str, epoch: int, cursor: int, generator: int) -> Lease | None: ...
    async def fail(self, fault: Fault, lease: Lease) -> Verdict: ...
    async def held_back(self, on: bool) -> None: ...
    async def finish(self) -> None: ...
    async def stop(self) -> None: ...
    async def state(self) -> LedgerState: ...
    async def changed(self, seen: int, timeout_s: float) -> LedgerState: ...


class Fleet(Protocol):
    def versions(self) -> Mapping[int, int]:
        """Index of each generator that may sample -> the weight version it has proved."""
        ...


@dataclass(frozen=True)
class LocalProducer:
    """Work in this process, without Ray; `work` is a scorer's `produce`."""

    work: Callable[[Lease, Parcel], Awaitable[Receipt | Fault]]
    timeout_s: float = 120.0

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        try:
            return await asyncio.wait_for(self.work(lease, parcel), self.timeout_s)
        except TimeoutError:
            detail = f"no receipt within {self.timeout_s:g} s"
            return RoleFailed("timeout", "scorer", detail).fault(lease.group)
        except Exception as error:
            return RoleFailed.of(error, "scorer").fault(lease.group)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Deadlines and bounds of the loop."""

    in_flight: int = 64  # leases per generator at one time
    patience_s: float = 600.0  # without any receipt, ledger change or new version
    drain_s: float = 30.0  # for leases under way when the run is asked to stop
    rest_s: float = 1.0  # a generator that failed takes no work for so long, or it would burn every retry
    tick_s: float = 0.05  # how long a proved version can go unnoticed; nothing is polled faster
    call_s: float = 60.0  # for one answer of the ledger
    buffer_bytes: int = 4 << 30  # of buffered groups; above it only what the next step lacks is issued


async def drive(
    prompts: Prompts,
    producer: Producer,
    ledger: Ledger,
    fleet: Fleet,
    admission: Admission,
    stop: asyncio.Event,
    limits: Limits | None = None,
    stage: int | None = None,
) -> None:
    """Feed the ledger until it has what the run needs, the data ends, or `stop` is set.

    With a `stage` of the recipe until the ledger opens the next one. Prompts that were taken from the stream
    and not issued are forgotten: go on at the ledger's `cursor`.

    On `stop` the ledger is told to end at the next step, nothing more is leased, and leases under way get
    `drain_s` to finish; the caller releases the rest.

    Raises:
        RunFailed: the ledger gave up (it says why), or nothing moved for `patience_s`.
        RoleFailed: the ledger or the prompt stream ("data") died or does not answer.
    """
    await _Drive(prompts, producer, ledger, fleet, admission, stop, limits or Limits(), stage).run()


Work = asyncio.Task["Receipt | Fault"]


@dataclass
class _Drive:
    prompts: Prompts
    producer: Producer
    ledger: Ledger
    fleet: Fleet
    admission: Admission
    stop: asyncio.Event
    limits: Limits
    stage: int | None
    fresh: deque[PromptItem] = field(default_factory=deque[PromptItem])  # taken from the stream
    again: deque[PromptItem] = field(default_factory=deque[PromptItem])  # to be issued once more
    alone: deque[PromptItem] = field(default_factory=deque[PromptItem])  # the same, with nothing beside it
    sole: Work | None = None  # the newest work that was issued alone
    work: dict[Work, tuple[Lease, PromptItem]] = field(default_factory=dict[Work, tuple[Lease, PromptItem]])
    abandoned: set[Work] = field(default_factory=set[Work])  # cancelled, and not gone yet
    watch: asyncio.Task[LedgerState] | None = None
    resting: dict[int, float] = field(default_factory=dict[int, float])  # generator -> time it may work again
    exhausted: bool = False
    full: bool = False  # too many bytes are buffered
    moved_at: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        stopping = asyncio.create_task(self.stop.wait())
        try:
            state = await self._ask(self.ledger.state())
            while not self.stop.is_set() and not self._over(state):
                await self._lease(state)
                state = await self._wait(state, stopping)
            if state.phase == "failed":
                raise RunFailed(state.failure or "the ledger gave up without a reason")
            if self.stop.is_set():
                await self._ask(self.ledger.stop())
                await self._drain()
        finally:
            tasks = [stopping, *self.work, *([self.watch] if self.watch else [])]
            await _cancel(tasks, self.abandoned)

    async def _ask(self, answer: Awaitable[T], role: str = "ledger", within_s: float | None = None) -> T:
        """An answer of a service that the loop cannot do without."""
        within_s = self.limits.call_s if within_s is None else within_s
        try:
            return await asyncio.wait_for(answer, within_s)
        except TimeoutError as error:
            raise RoleFailed("timeout", role, f"no answer within {within_s:g} s") from error

    def _over(self, state: LedgerState) -> bool:
        past = self.stage is not None and state.stage > self.stage
        if past or state.phase in ("stopping", "ended", "failed"):
            return True
        return state.phase == "finishing" and state.leased == 0 and not self.work

    async def _lease(self, state: LedgerState) -> None:
        """Issue leases while a generator admits them; work that failed goes first."""
        await self._abandon(state.expired)
        live = state.live
        while not self.stop.is_set():
            if self.sole in self.work or (self.alone and self.work):
                return
            queue = self.alone or self.again
            renewal = bool(queue)  # is counted in `live` already
            generator = self._choose(state, live - renewal)
            if generator is None or await self._held_back(state):
                return
            item = queue.popleft() if renewal else await self._next()
            if item is None:
                return
            cursor, epoch, prompt_id, parcel = item
            lease = await self._ask(self.ledger.issue(prompt_id, epoch, cursor, generator))
            if lease is not None:
                live += not renewal
                task = asyncio.create_task(self.producer.produce(lease, parcel))
                self.work[task] = (lease, item)
                self.sole = task if queue is self.alone else None
            elif self._over(await self._ask(self.ledger.state())):
                return

    async def _abandon(self, expired: frozenset[int]) -> None:
        """Give up work on leases that the ledger voided; what it delivers later is fenced off."""
        for task in [task for task, (lease, _) in self.work.items() if lease.fence in expired]:
            lease, item = self.work.pop(task)
            task.cancel()
            self.abandoned.add(task)
            task.add_done_callback(self.abandoned.discard)
            await self._failed(RoleFailed("lease_expired", "producer", "").fault(lease.group), lease, item)

    async def _held_back(self, state: LedgerState) -> bool:
        """Whether only the next step's groups may be issued, and enough of them are under way. A step that
        takes more bytes than allowed still fills."""
        enough = state.buffered + len(self.work) >= self.admission.groups_per_step
        full = enough and state.held_bytes > self.limits.buffer_bytes
        if full != self.full:
            self.full = full
            await self._ask(self.ledger.held_back(full))
        return full

    def _choose(self, state: LedgerState, live: int) -> int | None:
        """The generator with the fewest leases among those that admit one more."""
        load = Counter(lease.generator for lease, _ in self.work.values())
        now = time.monotonic()
        able = [
            generator
            for generator, version in self.fleet.versions().items()
            if load[generator] < self.limits.in_flight
            and self.resting.get(generator, now) <= now
            and self.admission.admits(version, state.stage, state.trained, live)
        ]
        return min(able, key=lambda generator: (load[generator], generator), default=None)

    async def _next(self) -> PromptItem | None:
        if not self.fresh and not self.exhausted:
            taking = self.prompts.next(self.admission.groups_per_step)
            self.fresh.extend(await self._ask(taking, "data", self.limits.patience_s))
            if not self.fresh:
                self.exhausted = True
                await self._ask(self.ledger.finish())
        return self.fresh.popleft() if self.fresh else None

    async def _wait(self, state: LedgerState, stopping: asyncio.Task[Any]) -> LedgerState:
        """Sleep until a receipt, a change of the ledger, a proved version, a rested generator or `stop`."""
        versions = dict(self.fleet.versions())
        while True:
            if self.watch is None:
                news_within_s = min(5.0, self.limits.call_s / 2)
                self.watch = asyncio.create_task(
                    self._ask(self.ledger.changed(state.revision, news_within_s))
                )
            awaited: set[asyncio.Task[Any]] = {*self.work, self.watch, stopping}
            done, _ = await asyncio.wait(
                awaited, timeout=self.limits.tick_s, return_when=asyncio.FIRST_COMPLETED
            )
            settled = await self._settle([task for task in self.work if task in done])
            news = state
            if self.watch in done:
                news, self.watch = self.watch.result(), None
            moved = settled or news.revision != state.revision or dict(self.fleet.versions()) != versions
            if moved:
                self.moved_at = time.monotonic()
            if moved or stopping.done() or self._rested():
                return await self._ask(self.ledger.state())  # never an old one: leases were issued since
            self._check_patience(state)

    def _rested(self) -> bool:
        now = time.monotonic()
        rested = [generator for generator, until in self.resting.items() if until <= now]
        for generator in rested:
            del self.resting[generator]
        return bool(rested)

    async def _settle(self, done: Iterable[Work]) -> bool:
        """Read what became of leases; of those that failed the ledger says whether to issue them again."""
        settled = False
        for task in done:
            settled = True
            lease, item = self.work.pop(task)
            error = task.exception()
            outcome = task.result() if error is None else RoleFailed.of(error, "producer").fault(lease.group)
            if isinstance(outcome, Fault):
                await self._failed(outcome, lease, item)
            elif not outcome.accepted and outcome.dropped is None:  # it came under a void fence
                refused = RoleFailed("refused", "ledger", "the lease was void")
                await self._failed(refused.fault(lease.group), lease, item)
        return settled

    async def _failed(self, fault: Fault, lease: Lease, item: PromptItem) -> None:
        if fault.reason == PROMPT_LOST:  # every try would fail, and none of them speaks against the group
            raise RoleFailed(fault.reason, fault.role, fault.detail)
        blamed = fault.retry and fault.reason != "aborted_for_sync"
        if fault.role == "generator" and blamed:  # it is the generator, not the input
            self.resting[lease.generator] = time.monotonic() + self.limits.rest_s
        verdict = await self._ask(self.ledger.fail(fault, lease))
        if verdict != "drop":
            (self.alone if verdict == "alone" else self.again).append(item)

    def _check_patience(self, state: LedgerState) -> None:
        if time.monotonic() - self.moved_at <= self.limits.patience_s:
            return
        waiting = sorted(lease.group for lease, _ in self.work.values())
        raise RunFailed(
            f"nothing moved for {self.limits.patience_s:g} s: no receipt, no trained step, no new version. "
            f"Under way: {len(waiting)} groups {waiting[:3]}; generators and their versions: "
            f"{dict(self.fleet.versions())}; ledger: {state.trained} groups trained, {state.live} live, "
            f"{state.leased} leased, {state.held_bytes} bytes buffered, phase {state.phase}, "
            f"stage {state.stage}"
        )

    async def _drain(self) -> None:
        until = time.monotonic() + self.limits.drain_s
        while self.work and (left := until - time.monotonic()) > 0:
            done, _ = await asyncio.wait(self.work, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            await self._settle(done)


async def _cancel(tasks: Iterable[asyncio.Task[Any]], leaving: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they, and those `leaving` already, are gone: none outlives the loop.

    Who is cancelled twice stops waiting for what it has cancelled itself.
    """
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait({*tasks, *leaving}, timeout=GONE_S)
    for task in done:
        if not task.cancelled():
            task.exception()  # has been seen
