"""The ledger: owns every group from its lease to the optimizer step, and can account for each at any moment.

    issued = leased + buffered + sealed + trained + dropped(reason) + released

The first use of a group's comparisons settles with the group; later uses have tickets of their own, which are
conserved as well (`actors.tickets`).

A group's id does not contain a weight version, so a late delivery and its re-issue are the same group: it is
accepted once, under the newest fencing number. A step is sealed once and every rank gets its part of that
answer however often it asks. The class is plain and free of Ray; all its state changes between two awaits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.accounts import END_OF_RUN, STAGE_OVER, Accounts, DropWatch, Entry, News, owned
from actors.records import Records
from actors.tickets import BODIES, Tickets
from pipelines.admission import Admission, Stretch
from pipelines.loop import LedgerState, Phase, RunFailed
from pipelines.rollout import derived_seed
from pipelines.types import NEVER_STALE, Fault, Group, Lease, Receipt, Shard, canonical_digest

REPLAY_STEPS = 32  # steps whose groups are kept for replay


def group_id(run: str, prompt_id: str, epoch: int, slot: int = 0) -> str:
    """The identity of a group, known before it is sampled and equal in every attempt."""
    return canonical_digest([run, prompt_id, epoch, slot])[:32]


class Ledger:
    """One per attempt.

    Args:
        admission: stages, steps and sizes of the whole run, those before a resume included.
        max_drop_share: of the last 100 groups for one reason; above it the run fails and names the reason.
        max_tries: leases that may fail before a group is dropped as "dead_letter".
        wait_s: how long `pull` waits without any change once leases are issued.
        start_s: how long it waits for the first lease (evaluation and survey come before it).
    """

    def __init__(
        self,
        run: str,
        attempt: int,
        admission: Admission,
        max_drop_share: float = 0.9,
        seed: int = 0,
        max_tries: int = 3,
        wait_s: float = 600.0,
        start_s: float = 3000.0,
    ) -> None:
        self._run, self._attempt, self._seed = run, attempt, seed
        self._admission = admission
        self._max_tries, self._wait_s, self._start_s = max_tries, wait_s, start_s
        self._books, self._records, self._tickets = Accounts(), Records(), Tickets(seed)
        self._watch = DropWatch(max_drop_share)
        self._fence = attempt << 32  # grows over attempts as well
        self._published = 0
        self._sealed_step = self._trained_step = 0
        self._finished = self._stopped = self._drained = False
        self._failure: str | None = None
        self._news = News()

    # --- the driver's side -------------------------------------------------------------------------------

    async def issue(self, prompt_id: str, epoch: int, cursor: int, generator: int) -> Lease | None:
        """A lease for one prompt, or for a group whose last lease failed.

        None when the group is settled already (a resumed run) or nothing is issued any more. Raises
        ValueError when the group is under way, which means that two rows have the same id.
        """
        name, books = group_id(self._run, prompt_id, epoch), self._books
        if self._phase in ("stopping", "ended", "failed"):
            return None
        if books.is_settled(name):
            books.frontier = max(books.frontier, cursor + 1)
            return None
        known = books.leased.get(name)
        if name in books.buffered or name in books.sealed or (known is not None and not known.waiting):
            raise ValueError(f"prompt {prompt_id!r} of epoch {epoch} is under way already; ids must differ")
        self._fence += 1
        seed = derived_seed(self._seed, name)
        step = self._step_of_next(books.live - (known is not None))
        where = {"cursor": cursor, "generator": generator, "step": step, "stage": self._stage}
        lease = Lease(group=name, fence=self._fence, seed=seed, **where)
        books.open(lease)
        self._change()
        return lease

    async def fail(self, fault: Fault, lease: Lease) -> bool:
        """A lease failed. True: the group waits to be issued again. The failed lease is void either way."""
        entry = self._books.leased.get(lease.group)
        if entry is None or entry.lease.fence != lease.fence or entry.waiting:
            self._books.tally["late"] += 1
            return False
        cause = f"{fault.role}: {fault.reason}: {fault.detail}"
        entry.faults.append(cause)
        entry.waiting = True
        cause_of = {"reason": fault.reason, "role": fault.role, "detail": fault.detail, "retry": fault.retry}
        self._records.note("fault", group=lease.group, generator=lease.generator, **cause_of)
        again = False
        if self._phase in ("running", "finishing"):
            again = fault.retry and len(entry.faults) < self._max_tries
            if again:
                self._books.tally["retried"] += 1
            else:
                reason = "dead_letter" if fault.retry else fault.reason
                self._drop(self._books.leased, lease.group, reason, " | ".join(entry.faults))
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
        self._books.release()
        self._tickets.release()
        self._change()

    async def state(self) -> LedgerState:
        return LedgerState(
            revision=self._news.revision,
            phase=self._phase,
            trained=len(self._books.trained),
            live=self._books.live,
            leased=len(self._books.leased),
            stage=self._stage,
            cursor=self._books.frontier,
            failure=self._failure,
        )

    async def changed(self, seen: int, timeout_s: float) -> LedgerState:
        """The state, as soon as its revision is above `seen`, and after `timeout_s` in any case."""
        await self._news.until(lambda: self._news.revision > seen, timeout_s)
        return await self.state()

    async def progress(self, after: int) -> list[dict[str, Any]]:
        """Metrics of the trained steps above `after`."""
        return self._records.progress(after)

    async def events(self, after: int) -> list[dict[str, Any]]:
        """Drops, faults, seals and stage seconds with a number above `after`; older ones are forgotten."""
        return self._records.events(after)

    async def counts(self) -> dict[str, Any]:
        """Groups by what became of them, how many deliveries were no-ops, and tickets of later uses."""
        again = {"later_uses": self._tickets.counts()} if self._tickets.minted else {}
        return self._books.counts() | again

    # --- the scorer's side -------------------------------------------------------------------------------

    async def accept(self, group: Group, detail: str = "") -> Receipt:
        """Take over a group's bytes, or record why there is nothing to learn from it. Once per group.

        `detail` is for people: the cause of a drop.
        """
        books = self._books
        entry = books.leased.get(group.id)
        if entry is None:
            held = any(group.id in place for place in (books.buffered, books.sealed, books.trained))
            books.tally["duplicate" if held else "late"] += 1
            return Receipt(group=group.id, accepted=held)
        if entry.waiting or entry.lease.fence != group.fence:
            books.tally["late"] += 1
            return Receipt(group=group.id, accepted=False)
        self._records.delivered(group)
        over = STAGE_OVER if self._sealed_step >= self._stretch(entry.lease.stage).last else None
        dropped = over or group.dropped or (None if group.comparisons else "no_comparison")
        if dropped is not None:
            self._drop(books.leased, group.id, dropped, detail)
        else:
            entry.group = owned(group)
            self._watch.kept()
            books.buffered[group.id] = books.leased.pop(group.id)
            self._drop_stale()
        self._change()
        reason, _ = books.dropped.get(group.id, (None, 0))
        return Receipt(group=group.id, accepted=reason is None, dropped=reason, facts=dict(group.facts))

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
        while not self._ready(step):
            seen, patience = self._news.revision, self._wait_s if self._issued else self._start_s
            if not await self._news.until(lambda seen=seen: self._news.revision > seen, patience):
                raise TimeoutError(
                    f"step {step} waits for {self._admission.groups_per_step} groups and nothing changed "
                    f"for {patience:g} s; trained steps: {self._trained_step}, groups: {self._books.counts()}"
                )
        if step == self._sealed_step and self._books.sealed:
            return self._shard(rank, world)
        if self._failure is not None:
            raise RunFailed(self._failure)
        return self._shard(rank, world) if self._seal(step) else Shard(step=step, stop=True)

    async def trained(self, attempt: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` is in the weights. The first rank to say so counts; its metrics are kept."""
        self._fenced(attempt)
        if step <= self._trained_step:
            return
        if step != self._sealed_step:
            raise ValueError(f"step {step} was never handed out; the newest one is {self._sealed_step}")
        stage = self._admission.stage_at(step)
        stretch, groups = self._stretch(stage), [entry.held for entry in self._books.sealed.values()]
        over = self._over(step) if step == stretch.last else None
        self._tickets.train(step, groups, stretch, REPLAY_STEPS * self._admission.groups_per_step, over)
        self._books.train(step)
        self._trained_step = step
        self._records.trained(step, stage, metrics)
        self._change()

    async def published(self, number: int) -> None:
        """Weight version `number` is out; buffered groups that are now too old are dropped."""
        self._published = max(self._published, number)
        self._drop_stale()
        self._change()

    async def snapshot(self, step: int) -> dict[str, Any]:
        """What a resume from the weights of step `step` must know; JSON-able but for `BODIES`: bytes of the
        comparisons that are trained on again, there only where there are some, and of the newest step alone.

        Groups issued but not trained up to `step` are absent, so that they are issued again from
        `next_cursor` on; drops are remembered, except those that only the end of the run caused.
        """
        if step > self._trained_step:
            raise ValueError(f"no snapshot of step {step}: only {self._trained_step} steps are trained")
        self._records.note(
            "snapshot", step=step
        )  # which drops a resume keeps can be recounted from the events
        made = {"run": self._run, **self._books.snapshot(step), "later": self._tickets.snapshot(step)}
        bodies = self._tickets.bodies()
        older = step != self._trained_step
        if older and (bodies or self._stretch(self._admission.stage_at(step)).reuses):
            raise ValueError(f"no bodies of step {step}: the newest trained step is {self._trained_step}")
        return made | ({BODIES: bodies} if bodies else {})

    async def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a snapshot; only a ledger that has issued nothing can."""
        if self._books.tally["issued"]:
            raise ValueError("a ledger that has issued leases cannot be restored")
        if snapshot["run"] != self._run:
            raise ValueError(f"the snapshot is of run {snapshot['run']!r}, this is run {self._run!r}")
        self._books.restore(snapshot)
        self._sealed_step = self._trained_step = snapshot["step"]
        self._published = self._admission.due(self._trained_step + 1)
        bodies: bytes = snapshot.get(BODIES, b"")
        self._tickets.restore(snapshot["later"], bodies, self._stretch(self._stage).uses)
        self._change()

    def check(self) -> None:
        """Assert conservation. For tests and for debugging."""
        self._books.check()
        self._tickets.check()

    # --- inside ------------------------------------------------------------------------------------------

    @property
    def _issued(self) -> bool:
        """Whether this attempt has issued a lease."""
        return self._fence > self._attempt << 32

    @property
    def _phase(self) -> Phase:
        if self._failure is not None:
            return "failed"
        if self._stopped:
            return "stopping"
        if self._sealed_step >= self._admission.max_steps:
            return "ended"
        return "finishing" if self._finished else "running"

    @property
    def _stage(self) -> int:
        """The open stage: the one before is trained to its end, and the version that ended it is out."""
        stage = self._admission.stage_at(self._trained_step + 1)
        closed = stage and self._published < self._admission.due(self._admission.first(stage))
        return stage - 1 if closed else stage

    def _stretch(self, stage: int) -> Stretch:
        return self._admission.stages[stage]

    def _over(self, last: int) -> str:
        """Why what is left is dropped after the last step of a stage."""
        return END_OF_RUN if last == self._admission.max_steps else STAGE_OVER

    def _step_of_next(self, live: int) -> int:
        """The step that the next group is for, when `live` others are under way."""
        step = (len(self._books.trained) + live) // self._admission.groups_per_step + 1
        return min(max(step, self._trained_step + 1), self._stretch(self._stage).last)

    def _ready(self, step: int) -> bool:
        """Whether `pull` can answer for `step` now."""
        if self._failure is not None or self._stopped or step <= self._sealed_step:
            return True
        if step != self._trained_step + 1:
            return False  # a rank is ahead of the one that reports `trained`
        if self._phase == "ended" or (self._finished and not self._books.leased):
            return True
        return len(self._books.buffered) >= self._admission.groups_per_step

    def _seal(self, step: int) -> bool:
        """Fix the groups of `step`: the oldest first. False when there is no such step."""
        books = self._books
        if self._phase not in ("running", "finishing") or not books.buffered:
            return False
        oldest = sorted(books.buffered.values(), key=lambda e: (e.held.version, e.lease.cursor))
        chosen = oldest[: self._admission.groups_per_step]
        for entry in sorted(chosen, key=lambda e: e.lease.cursor):
            books.sealed[entry.lease.group] = books.buffered.pop(entry.lease.group)
        self._sealed_step = step
        stretch = self._stretch(self._admission.stage_at(step))
        first = sum(len(entry.held.comparisons) for entry in chosen)
        self._tickets.seal(step, first, stretch)
        later = self._tickets.sealed
        self._records.sealed([self._lag(entry.held, step) for entry in chosen], first, len(later))
        self._records.note("seal", step=step, groups=list(books.sealed), later=[[*key] for key in later])
        if step == stretch.last:
            for entries in (books.leased, books.buffered):
                for name in list(entries):
                    self._drop(entries, name, self._over(step))
        self._drop_stale()
        self._drained = self._phase == "ended" or (self._finished and not books.leased and not books.buffered)
        self._change()
        return True

    def _shard(self, rank: int, world: int) -> Shard:
        newest = self._admission.due(self._sealed_step)
        groups = [entry.held for entry in self._books.sealed.values()] + self._tickets.groups()
        groups = [replace(g, version=newest) if g.version == NEVER_STALE else g for g in groups]
        sizes = [sum(len(group.comparisons) for group in groups[r::world]) for r in range(world)]
        mine, step = tuple(groups[rank::world]), self._sealed_step
        return Shard(step=step, stop=False, groups=mine, largest=max(sizes), drained=self._drained)

    def _lag(self, group: Group, step: int) -> int:
        """Published versions between a group's weights and those that step `step` starts from."""
        return max(max(self._published, self._admission.due(step)) - group.version, 0)

    def _drop_stale(self) -> None:
        """Drop what would be over its lag at the next hand-out; its slot is free for a replacement."""
        step = self._sealed_step + 1
        allowed = self._stretch(self._admission.stage_at(step)).max_lag
        for name, entry in list(self._books.buffered.items()):
            if (lag := self._lag(entry.held, step)) > allowed:
                self._drop(self._books.buffered, name, "stale", f"{lag} versions behind")

    def _drop(self, entries: dict[str, Entry], name: str, reason: str, detail: str = "") -> None:
        lease = entries.pop(name).lease
        self._books.dropped[name] = (reason, lease.cursor)
        self._records.note("drop", group=name, cursor=lease.cursor, reason=reason, detail=detail)
        if entries is not self._books.leased:
            self._watch.withdrawn()
        blameless = reason in (END_OF_RUN, STAGE_OVER)
        if not blameless and (why := self._watch.dropped(reason, detail)) is not None:
            self._fail(why)

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._records.note("failed", reason=self._failure)

    def _fenced(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise PermissionError(
                f"refused: the caller belongs to attempt {attempt}, the ledger to {self._attempt}"
            )

    def _change(self) -> None:
        """Wake everybody who waits. Also the place where a run without a single step is found out."""
        if self._finished and not (self._books.live or self._trained_step or self._stopped or self._failure):
            self._fail(f"the data ended before a single step; groups dropped: {self._books.drops()}")
        self._news.tell()
