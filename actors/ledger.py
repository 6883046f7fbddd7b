"""The ledger: owns every group from its lease to the optimizer step, and can account for each at any moment.

    issued = leased + buffered + sealed + trained + dropped(reason) + released

A group's id does not contain a weight version, so a late delivery and its re-issue are the same group: it is
accepted once, under the newest fencing number. A step is sealed once and every rank gets its part of that
answer however often it asks. The class is plain and free of Ray; all its state changes between two awaits.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.admission import Admission
from pipelines.loop import LedgerState, Phase, RunFailed
from pipelines.rollout import derived_seed
from pipelines.types import Fault, Group, Lease, Receipt, Shard, canonical_digest

WINDOW = 100  # groups over which the share of one drop reason is taken
HINTS = {
    "tie": "all answers to a prompt score the same; use more samples, a higher temperature or a finer reward",
    "missing_score": "the reward fails or returns nothing; see `missing` in events.jsonl",
    "stale": "answers arrive after too many syncs; raise sync.max_lag or lower rollout.max_tokens",
    "dead_letter": "every retry failed; the detail names role and cause",
}


def group_id(run: str, prompt_id: str, epoch: int, slot: int = 0) -> str:
    """The identity of a group, known before it is sampled and equal in every attempt."""
    return canonical_digest([run, prompt_id, epoch, slot])[:32]


@dataclass
class _Entry:
    """A group that is not settled yet."""

    lease: Lease
    waiting: bool = False  # its last lease failed: it waits to be issued again
    faults: list[str] = field(default_factory=list[str])
    group: Group | None = None

    @property
    def held(self) -> Group:
        assert self.group is not None, f"group {self.lease.group} is {self.lease}, not delivered"
        return self.group


class Ledger:
    """One per attempt.

    Args:
        max_steps: steps of the whole run, those before a resume included.
        max_drop_share: of the last 100 groups for one reason; above it the run fails and names the reason.
        max_tries: leases that may fail before a group is dropped as "dead_letter".
        wait_s: deadline of `pull`.
    """

    def __init__(
        self,
        run: str,
        attempt: int,
        groups_per_step: int,
        sync_every: int,
        max_lag: int,
        max_steps: int,
        max_drop_share: float = 0.9,
        seed: int = 0,
        max_tries: int = 3,
        wait_s: float = 600.0,
    ) -> None:
        self._run, self._attempt, self._seed = run, attempt, seed
        self._admission = Admission(
            max_lag=max_lag, sync_every=sync_every, groups_per_step=groups_per_step, max_steps=max_steps
        )
        self._max_drop_share, self._max_tries, self._wait_s = max_drop_share, max_tries, wait_s
        self._leased: dict[str, _Entry] = {}
        self._buffered: dict[str, _Entry] = {}
        self._sealed: dict[str, _Entry] = {}  # of the one step under training, in sealed order
        self._trained: dict[str, tuple[int, int]] = {}  # id -> step, cursor
        self._dropped: dict[str, tuple[str, int]] = {}  # id -> reason, cursor
        self._released: dict[str, int] = {}  # id -> cursor
        self._tally: Counter[str] = Counter()  # issued, late, duplicate, retried
        self._fence = attempt << 32  # grows over attempts as well
        self._frontier = 0  # first cursor that was never issued
        self._published = 0
        self._sealed_step = self._trained_step = 0
        self._finished = self._stopped = False
        self._failure: str | None = None
        self._outcomes: deque[str] = deque(maxlen=WINDOW)
        self._facts: dict[str, list[float]] = {}
        self._seconds: Counter[str] = Counter()
        self._step_facts: dict[str, float] = {}
        self._metrics: list[dict[str, Any]] = []
        self._events: deque[dict[str, Any]] = deque(maxlen=100_000)
        self._started = time.monotonic()
        self._revision = self._event_number = 0
        self._wake = asyncio.Event()

    # --- the driver's side -------------------------------------------------------------------------------

    async def issue(self, prompt_id: str, epoch: int, cursor: int, generator: int) -> Lease | None:
        """A lease for one prompt, or for a group whose last lease failed.

        None when the group is settled already (a resumed run) or nothing is issued any more. Raises ValueError
        when the group is under way, which means that two rows have the same id.
        """
        name = group_id(self._run, prompt_id, epoch)
        if self._phase in ("stopping", "ended", "failed") or name in self._trained or name in self._dropped:
            return None
        known = self._leased.get(name)
        if name in self._buffered or name in self._sealed or (known is not None and not known.waiting):
            raise ValueError(
                f"prompt {prompt_id!r} of epoch {epoch} is under way already: prompt ids must differ"
            )
        self._fence += 1
        seed = derived_seed(self._seed, name)
        lease = Lease(group=name, fence=self._fence, cursor=cursor, seed=seed, generator=generator)
        if known is not None:
            known.lease, known.waiting = lease, False
        else:
            self._released.pop(name, None)
            self._leased[name] = _Entry(lease)
            self._tally["issued"] += 1
            self._frontier = max(self._frontier, cursor + 1)
        self._change()
        return lease

    async def fail(self, fault: Fault, lease: Lease) -> bool:
        """A lease failed. True: the group waits to be issued again. The failed lease is void either way."""
        entry = self._leased.get(lease.group)
        if entry is None or entry.lease.fence != lease.fence or entry.waiting:
            self._tally["late"] += 1
            return False
        cause = f"{fault.role}: {fault.reason}: {fault.detail}"
        entry.faults.append(cause)
        entry.waiting = True
        self._note("fault", group=lease.group, generator=lease.generator, reason=fault.reason, role=fault.role,
                   detail=fault.detail, retry=fault.retry)  # fmt: skip
        again = False
        if self._phase in ("running", "finishing"):
            again = fault.retry and len(entry.faults) < self._max_tries
            if again:
                self._tally["retried"] += 1
            else:
                reason = "dead_letter" if fault.retry else fault.reason
                self._drop(self._leased, lease.group, reason, " | ".join(entry.faults))
        self._change()
        return again

    async def finish(self) -> None:
        """The data is at its end: groups under way finish, and what remains trains as a smaller step."""
        self._finished = True
        self._change()

    async def stop(self) -> None:
        """End the run at the next step: no step is sealed after this."""
        self._stopped = True
        self._change()

    async def release(self) -> None:
        """Give up what is not trained, without dropping it: a resumed run issues it again."""
        self._stopped = True
        for entries in (self._leased, self._buffered, self._sealed):
            self._released.update({name: entry.lease.cursor for name, entry in entries.items()})
            entries.clear()
        self._change()

    async def state(self) -> LedgerState:
        return LedgerState(
            revision=self._revision,
            phase=self._phase,
            trained=len(self._trained),
            live=len(self._leased) + len(self._buffered) + len(self._sealed),
            leased=len(self._leased),
            failure=self._failure,
        )

    async def changed(self, seen: int, timeout_s: float) -> LedgerState:
        """The state, as soon as its revision is above `seen`, and after `timeout_s` in any case."""
        await self._until(lambda: self._revision > seen, timeout_s)
        return await self.state()

    async def progress(self, after: int) -> list[dict[str, Any]]:
        """Metrics of the trained steps above `after`."""
        return [metrics for metrics in self._metrics if metrics["step"] > after]

    async def events(self, after: int) -> list[dict[str, Any]]:
        """Drops, faults, seals and stage seconds with a number above `after`; older ones are forgotten."""
        while self._events and self._events[0]["number"] <= after:
            self._events.popleft()
        return list(self._events)

    async def counts(self) -> dict[str, Any]:
        """Groups by what became of them, and how many deliveries were no-ops."""
        return {
            "issued": self._tally["issued"],
            "trained": len(self._trained),
            "leased": len(self._leased),
            "buffered": len(self._buffered),
            "sealed": len(self._sealed),
            "dropped": dict(Counter(reason for reason, _ in self._dropped.values())),
            "released": len(self._released),
            "retried": self._tally["retried"],
            "late": self._tally["late"],
            "duplicate": self._tally["duplicate"],
        }

    # --- the scorer's side -------------------------------------------------------------------------------

    async def accept(self, group: Group) -> Receipt:
        """Take over a group's bytes, or record why there is nothing to learn from it. Once per group."""
        entry = self._leased.get(group.id)
        if entry is None:
            held = group.id in self._buffered or group.id in self._sealed or group.id in self._trained
            self._tally["duplicate" if held else "late"] += 1
            return Receipt(group=group.id, accepted=held)
        if entry.waiting or entry.lease.fence != group.fence:
            self._tally["late"] += 1
            return Receipt(group=group.id, accepted=False)
        for name, value in group.facts.items():
            self._facts.setdefault(name, []).append(value)
        self._seconds.update(group.seconds)
        dropped = group.dropped or (None if group.comparisons else "no_comparison")
        if dropped is not None:
            self._drop(self._leased, group.id, dropped)
        else:
            entry.group = _owned(group)
            self._buffered[group.id] = self._leased.pop(group.id)
            self._drop_stale()
        self._change()
        return Receipt(
            group=group.id, accepted=group.id in self._buffered, dropped=dropped, facts=dict(group.facts)
        )

    # --- the learner's side ------------------------------------------------------------------------------

    async def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        """Rank `rank` of `world`'s part of step `step` (1-based); the same answer however often it is asked.

        Raises:
            PermissionError: the caller belongs to another attempt.
            RunFailed: the run cannot go on.
            TimeoutError: the step could not be sealed within the deadline.
        """
        self._fenced(attempt)
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks does not exist")
        if step <= self._trained_step:
            raise ValueError(f"step {step} is trained already; the next one is {self._trained_step + 1}")
        if not await self._until(lambda: self._ready(step), self._wait_s):
            raise TimeoutError(
                f"step {step} waited {self._wait_s:g} s for {self._admission.groups_per_step} fresh groups "
                f"(trained steps: {self._trained_step}); ledger: {await self.counts()}"
            )
        if self._failure is not None:
            raise RunFailed(self._failure)
        if step != self._sealed_step and not self._seal(step):
            return Shard(step=step, stop=True)
        return self._shard(rank, world)

    async def trained(self, attempt: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` is in the weights. The first rank to say so counts; its metrics are kept."""
        self._fenced(attempt)
        if step <= self._trained_step:
            return
        if step != self._sealed_step:
            raise ValueError(
                f"step {step} was never handed out; the newest sealed step is {self._sealed_step}"
            )
        for name, entry in self._sealed.items():
            self._trained[name] = (step, entry.lease.cursor)
        self._sealed.clear()
        self._trained_step = step
        time_s = round(time.monotonic() - self._started, 3)
        self._metrics.append({"time_s": time_s, **self._step_facts, **metrics, "step": step})
        self._note(
            "stage_seconds", step=step, seconds={name: round(s, 4) for name, s in self._seconds.items()}
        )
        self._seconds.clear()
        self._change()

    async def published(self, number: int) -> None:
        """Weight version `number` is out; buffered groups that are now too old are dropped."""
        self._published = max(self._published, number)
        self._drop_stale()
        self._change()

    async def snapshot(self, step: int) -> dict[str, Any]:
        """What a resume from the weights of step `step` must know; JSON-able.

        Groups issued but not trained up to `step` are absent, so that they are issued again from `next_cursor`
        on; drops are remembered, except those that only the end of the run caused.
        """
        if step > self._trained_step:
            raise ValueError(f"no snapshot of step {step}: only {self._trained_step} steps are trained")
        trained = [[name, at, cursor] for name, (at, cursor) in self._trained.items() if at <= step]
        dropped = [[name, reason, cursor] for name, (reason, cursor) in self._dropped.items()
                   if reason != "end_of_run"]  # fmt: skip
        open_cursors = [cursor for at, cursor in self._trained.values() if at > step]
        open_cursors += [cursor for reason, cursor in self._dropped.values() if reason == "end_of_run"]
        open_cursors += self._released.values()
        for entries in (self._leased, self._buffered, self._sealed):
            open_cursors += [entry.lease.cursor for entry in entries.values()]
        return {
            "run": self._run,
            "step": step,
            "next_cursor": min(open_cursors, default=self._frontier),
            "trained": trained,
            "dropped": dropped,
        }

    async def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a snapshot; only a ledger that has issued nothing can."""
        if self._tally["issued"]:
            raise ValueError("a ledger that has issued leases cannot be restored")
        if snapshot["run"] != self._run:
            raise ValueError(f"the snapshot is of run {snapshot['run']!r}, this is run {self._run!r}")
        self._trained = {name: (step, cursor) for name, step, cursor in snapshot["trained"]}
        self._dropped = {name: (reason, cursor) for name, reason, cursor in snapshot["dropped"]}
        self._tally["issued"] = len(self._trained) + len(self._dropped)
        self._sealed_step = self._trained_step = snapshot["step"]
        self._published = self._admission.due(self._trained_step + 1)
        self._frontier = snapshot["next_cursor"]
        self._change()

    # --- inside ------------------------------------------------------------------------------------------

    @property
    def _phase(self) -> Phase:
        if self._failure is not None:
            return "failed"
        if self._stopped:
            return "stopping"
        if self._sealed_step >= self._admission.max_steps:
            return "ended"
        return "finishing" if self._finished else "running"

    def _ready(self, step: int) -> bool:
        """Whether `pull` can answer for `step` now."""
        if self._failure is not None or self._stopped or step <= self._sealed_step:
            return True
        if step != self._trained_step + 1:
            return False  # a rank is ahead of the one that reports `trained`
        if self._phase == "ended" or (self._finished and not self._leased):
            return True
        return len(self._buffered) >= self._admission.groups_per_step

    def _seal(self, step: int) -> bool:
        """Fix the groups of `step`: the oldest first. False when there is no such step."""
        self._drop_stale()
        if self._phase not in ("running", "finishing") or not self._buffered:
            return False
        oldest = sorted(self._buffered.values(), key=lambda e: (e.held.version, e.lease.cursor))
        chosen = oldest[: self._admission.groups_per_step]
        for entry in sorted(chosen, key=lambda e: e.lease.cursor):
            self._sealed[entry.lease.group] = self._buffered.pop(entry.lease.group)
        lags = [self._lag(entry.held, step) for entry in chosen]
        self._sealed_step = step
        self._outcomes.extend("kept" for _ in chosen)
        self._step_facts = {name: float(np.mean(values)) for name, values in self._facts.items()}
        self._step_facts |= {"lag_max": max(lags), "lag_mean": float(np.mean(lags)), "groups": len(chosen)}
        self._facts.clear()
        self._note("seal", step=step, groups=list(self._sealed))
        if step == self._admission.max_steps:
            for entries in (self._leased, self._buffered):
                for name in list(entries):
                    self._drop(entries, name, "end_of_run")
        self._drop_stale()
        self._change()
        return True

    def _shard(self, rank: int, world: int) -> Shard:
        groups = [entry.held for entry in self._sealed.values()]
        sizes = [sum(len(group.comparisons) for group in groups[r::world]) for r in range(world)]
        last = self._phase == "ended" or (self._finished and not self._leased and not self._buffered)
        mine = tuple(groups[rank::world])
        return Shard(step=self._sealed_step, stop=False, groups=mine, largest=max(sizes), drained=last)

    def _lag(self, group: Group, step: int) -> int:
        """Published versions between a group's weights and those that step `step` starts from."""
        return max(max(self._published, self._admission.due(step)) - group.version, 0)

    def _drop_stale(self) -> None:
        """Drop what would be over its lag at the next hand-out; its slot is free for a replacement."""
        for name, entry in list(self._buffered.items()):
            lag = self._lag(entry.held, self._sealed_step + 1)
            if lag > self._admission.max_lag:
                self._drop(self._buffered, name, "stale", f"{lag} versions behind")

    def _drop(self, entries: dict[str, _Entry], name: str, reason: str, detail: str = "") -> None:
        lease = entries.pop(name).lease
        self._dropped[name] = (reason, lease.cursor)
        self._note("drop", group=name, cursor=lease.cursor, reason=reason, detail=detail)
        if reason == "end_of_run":
            return
        self._outcomes.append(reason)
        share = self._outcomes.count(reason) / WINDOW
        if share > self._max_drop_share:
            hint = HINTS.get(reason, "see events.jsonl")
            self._fail(
                f"{self._outcomes.count(reason)} of the last {WINDOW} groups were dropped for {reason!r}, more than "
                f"max_drop_share={self._max_drop_share:g} allows: {hint}"
                + (f"; last: {detail}" if detail else "")
            )

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._note("failed", reason=self._failure)

    def _note(self, event: str, **fields: Any) -> None:
        self._event_number += 1
        self._events.append({"event": event, "number": self._event_number, **fields})

    def _fenced(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise PermissionError(
                f"refused: the caller belongs to attempt {attempt}, the ledger to {self._attempt}; restart the caller"
            )

    def _change(self) -> None:
        """Wake everybody who waits. Also the place where a run without a single step is found out."""
        nothing_left = self._finished and not (self._leased or self._buffered or self._sealed)
        if nothing_left and not self._trained_step and not self._stopped and self._failure is None:
            reasons = dict(Counter(reason for reason, _ in self._dropped.values()))
            self._fail(f"the data ended and not one group could be trained; dropped: {reasons}")
        self._revision += 1
        self._wake.set()
        self._wake = asyncio.Event()

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `holds()`; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            try:
                await asyncio.wait_for(self._wake.wait(), deadline - time.monotonic())
            except TimeoutError:
                return holds()
        return True

    def check(self) -> None:
        """Assert conservation, and that no group is in two places. For tests and for debugging."""
        places: Sequence[Mapping[str, Any]] = (
            self._leased, self._buffered, self._sealed, self._trained, self._dropped, self._released,
        )  # fmt: skip
        names = [name for place in places for name in place]
        assert len(names) == len(set(names)), "a group is in two places"
        assert len(names) == self._tally["issued"], (
            f"issued {self._tally['issued']}, accounted for {len(names)}"
        )


def _owned(group: Group) -> Group:
    """The group with its arrays copied: what came through shared memory dies with the process that owns it."""
    media = {key: replace(item, payload=np.array(item.payload)) for key, item in group.media.items()}
    return replace(group, media=media)
