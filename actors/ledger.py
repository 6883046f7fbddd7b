"""The ledger: owns every group from its lease to the optimizer step, and can account for each at any moment.

    issued = leased + buffered + sealed + trained + dropped(reason) + released

The first use of a group's comparisons settles with the group; later uses have tickets of their own, which are
conserved as well (`actors.tickets`).

A group's id does not contain a weight version, so a late delivery and its re-issue are the same group: it is
accepted once, under the newest fencing number. A step is sealed once and every rank gets its part of that
answer however often it asks. The class is plain and free of Ray; all its state changes between two awaits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.accounts import END_OF_RUN, STAGE_OVER, Accounts, DropWatch, News
from actors.course import Course
from actors.leases import BLAMELESS, EXPIRED, Deadlines, Entry, report_of
from actors.records import Records
from actors.tickets import BODIES, Tickets
from pipelines.admission import Admission
from pipelines.loop import LedgerState, RoleFailed, RunFailed, Verdict
from pipelines.rollout import derived_seed
from pipelines.types import Fault, Group, Lease, Receipt, Shard, canonical_digest

REPLAY_STEPS = 32  # steps whose groups are kept for replay


def group_id(run: str, prompt_id: str, epoch: int, slot: int = 0) -> str:
    """The identity of a group, known before it is sampled and equal in every attempt."""
    return canonical_digest([run, prompt_id, epoch, slot])[:32]


class Ledger:
    """One per attempt.

    Args:
        admission: stages, steps and sizes of the whole run, those before a resume included.
        max_drop_share: of the last 100 groups for one reason; above it the run fails and names the reason.
        max_tries: leases that may fail before a group is dropped as "dead_letter"; the last one is alone, and
            repeated where workers die (`actors.leases.Entry.proofs`).
        wait_s: how long `pull` waits without any change once leases are issued.
        start_s: how long it waits for the first lease (evaluation and survey come before it).
        lease_s: a lease without a receipt or a fault for so long is void, and its group is issued again.
        clock: monotonic seconds.
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
        lease_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._attempt, self._seed = run, attempt, seed
        self._course = Course(admission)
        self._max_tries, self._wait_s, self._start_s = max_tries, wait_s, start_s
        self._books, self._records, self._tickets = Accounts(), Records(clock), Tickets(seed)
        self._deadlines = Deadlines(lease_s, clock)
        self._expired: set[int] = set()  # fences of leases that it voided and the driver does not know of
        self._watch = DropWatch(max_drop_share)
        self._fence = attempt << 32  # grows over attempts as well
        self._news = News()

    # --- the driver's side -------------------------------------------------------------------------------

    async def issue(self, prompt_id: str, epoch: int, cursor: int, generator: int) -> Lease | None:
        """A lease for one prompt, or for a group whose last lease failed.

        None when the group is settled already (a resumed run) or nothing is issued any more. Raises
        ValueError when the group is under way, which means that two rows have the same id.
        """
        name, books, course = group_id(self._run, prompt_id, epoch), self._books, self._course
        if not course.open:
            return None
        if books.is_settled(name):
            books.frontier = max(books.frontier, cursor + 1)
            return None
        known = books.leased.get(name)
        if name in books.buffered or name in books.sealed or (known is not None and not known.waiting):
            raise ValueError(f"prompt {prompt_id!r} of epoch {epoch} is under way already; ids must differ")
        self._fence += 1
        seed = derived_seed(self._seed, name)
        step = course.step_of_next(len(books.trained) + books.live - (known is not None))
        where = {"cursor": cursor, "generator": generator, "step": step, "stage": course.stage}
        lease = Lease(group=name, fence=self._fence, seed=seed, **where)
        self._deadlines.watch(books.open(lease, prompt_id, self._deadlines.clock()))
        self._records.note("issue", group=name, prompt=prompt_id, fence=lease.fence, **where)
        self._change()
        return lease

    async def fail(self, fault: Fault, lease: Lease) -> Verdict:
        """A lease failed, and is void. Its group is dropped (or settled otherwise), to be issued again, or to
        be issued again with nothing beside it. Whoever asks again gets the same answer."""
        self._expired.discard(lease.fence)
        entry = self._books.leased.get(lease.group)
        if entry is not None and entry.verdict is not None and entry.lease.fence == lease.fence:
            return entry.verdict
        if self._refused(lease.group, lease.fence):
            return "drop"
        return self._void(self._books.leased[lease.group], fault)

    async def finish(self) -> None:
        """The data is at its end: groups under way finish, and what remains trains as a smaller step."""
        self._course.finished = True
        self._change()

    async def stop(self) -> None:
        """End the run at the next step: no step is sealed after this."""
        self._course.stopped = True
        self._change()

    async def release(self) -> None:
        """Give up what is not trained, without dropping it: a resumed run issues it again."""
        self._course.stopped = True
        self._course.sealed = self._course.trained  # `trained` refuses the step that was under training
        self._records.note("release", groups=self._books.release())
        self._tickets.release()
        self._change()

    async def held_back(self, on: bool) -> None:
        """The driver begins, or ends, to issue nothing because of the bytes that are buffered."""
        self._books.tally["held_back"] += on
        self._records.note("held_back", on=on, held_bytes=self._books.held_bytes)

    async def state(self) -> LedgerState:
        self._expire()
        return LedgerState(
            revision=self._news.revision,
            phase=self._course.phase,
            trained=len(self._books.trained),
            live=self._books.live,
            leased=len(self._books.leased),
            buffered=len(self._books.buffered),
            held_bytes=self._books.held_bytes,
            oldest_lease_s=self._deadlines.oldest_s(self._books.leased),
            expired=frozenset(self._expired),
            stage=self._course.stage,
            cursor=self._books.frontier,
            failure=self._course.failure,
        )

    async def changed(self, seen: int, timeout_s: float) -> LedgerState:
        """The state, as soon as its revision is above `seen`, and after `timeout_s` in any case."""
        wait_s = min(timeout_s, self._deadlines.lease_s)  # somebody has to notice that a lease is too old
        await self._news.until(lambda: self._news.revision > seen, wait_s)
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

    async def report(self) -> dict[str, Any]:
        """How it stands, for people: the oldest leases under way, counts, bytes. JSON-able."""
        state, at = await self.state(), self._course
        about = {"step": at.trained, "published": at.published, "counts": await self.counts()}
        return about | report_of(state, self._books.leased, self._deadlines.clock())

    async def logical(self, step: int) -> dict[str, Any]:
        """What became of every group and ticket up to `step`, free of fences, attempts and time: equal in a
        deterministic run that was resumed and in one that was not. JSON-able."""
        return self._books.logical(step) | {"later": self._tickets.logical(step)}

    # --- the scorer's side -------------------------------------------------------------------------------

    async def accept(self, group: Group, detail: str = "") -> Receipt:
        """Take over a group's bytes, or record why there is nothing to learn from it. Once per group.

        `detail` is for people: the cause of a drop.
        """
        books = self._books
        if self._refused(group.id, group.fence):
            return books.receipt(group.id, group.fence)
        books.fences[group.id] = group.fence
        self._records.delivered(group)
        over = STAGE_OVER if self._course.closed(books.leased[group.id].lease.stage) else None
        dropped = over or group.dropped or (None if group.comparisons else "no_comparison")
        if dropped is not None:
            self._drop(books.leased, group.id, dropped, detail)
        else:
            self._watch.kept()
            books.buffer(group)
            self._drop_stale()
        self._change()
        return books.receipt(group.id, group.fence, group.facts)

    # --- the learner's side ------------------------------------------------------------------------------

    async def enlist(self, rank: int, node: str, pid: int) -> None:
        """Rank `rank` of this attempt runs as process `pid` of that node."""
        self._records.note("rank", rank=rank, node=node, pid=pid)

    async def pull(self, attempt: int, step: int, rank: int, world: int) -> Shard:
        """Rank `rank` of `world`'s part of step `step` (1-based); the same answer however often it is asked.

        Raises:
            PermissionError: the caller belongs to another attempt.
            RunFailed: the run cannot go on.
            TimeoutError: the step could not be sealed within the deadline.
        """
        self._fenced(attempt)
        course = self._course
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks does not exist")
        if step <= course.trained:
            raise ValueError(f"step {step} is trained already; the next one is {course.trained + 1}")
        while not self._ready(step):
            issued = self._fence > self._attempt << 32
            seen, patience = self._news.revision, self._wait_s if issued else self._start_s
            if not await self._news.until(lambda seen=seen: self._news.revision > seen, patience):
                raise TimeoutError(
                    f"step {step} waits for {course.admission.groups_per_step} groups and nothing changed "
                    f"for {patience:g} s; trained steps: {course.trained}, groups: {self._books.counts()}"
                )
        if step != course.sealed or not self._books.sealed:
            if course.failure is not None:
                raise RunFailed(course.failure)
            if not self._seal(step):
                return Shard(step=step, stop=True)
        sealed = [entry.held for entry in self._books.sealed.values()]
        return course.shard(sealed + self._tickets.groups(), rank, world)

    async def trained(self, attempt: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` is in the weights. The first rank to say so counts; its metrics are kept."""
        self._fenced(attempt)
        course = self._course
        if step <= course.trained:
            return
        if step != course.sealed:
            raise ValueError(f"step {step} was never handed out; the newest one is {course.sealed}")
        stretch, groups = course.stretch(step), [entry.held for entry in self._books.sealed.values()]
        over = course.over(step) if step == stretch.last else None
        self._tickets.train(step, groups, stretch, REPLAY_STEPS * course.admission.groups_per_step, over)
        self._books.train(step)
        course.trained = step
        self._records.trained(step, course.admission.stage_at(step), metrics)
        self._change()

    async def published(self, number: int, digest: str = "", step: int = -1) -> None:
        """Weight version `number`, of that digest and learner step, is out; buffered groups that are now too
        old are dropped."""
        self._records.note("published", version=number, attempt=self._attempt, step=step, digest=digest)
        self._course.published = max(self._course.published, number)
        self._drop_stale()
        self._change()

    async def snapshot(self, step: int) -> dict[str, Any]:
        """What a resume from the weights of step `step` must know; JSON-able but for `BODIES`: bytes of the
        comparisons that are trained on again, there only where there are some, and of the newest step alone.

        Groups issued but not trained up to `step` are absent, so that they are issued again from
        `next_cursor` on; drops are remembered, except those that only the end of the run caused.
        """
        course = self._course
        if step > course.trained:
            raise ValueError(f"no snapshot of step {step}: only {course.trained} steps are trained")
        self._records.note("snapshot", step=step)  # says which drops a resume keeps
        made = {"run": self._run, **self._books.snapshot(step), "later": self._tickets.snapshot(step)}
        bodies = self._tickets.bodies()
        older = step != course.trained
        if older and (bodies or course.stretch(step).reuses):
            raise ValueError(f"no bodies of step {step}: the newest trained step is {course.trained}")
        return made | ({BODIES: bodies} if bodies else {})

    async def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a snapshot; only a ledger that has issued nothing can."""
        if self._books.tally["issued"]:
            raise ValueError("a ledger that has issued leases cannot be restored")
        if snapshot["run"] != self._run:
            raise ValueError(f"the snapshot is of run {snapshot['run']!r}, this is run {self._run!r}")
        self._books.restore(snapshot)
        course = self._course
        course.sealed = course.trained = snapshot["step"]
        course.published = course.admission.due(course.trained + 1)
        bodies: bytes = snapshot.get(BODIES, b"")
        self._tickets.restore(snapshot["later"], bodies, course.admission.stages[course.stage].uses)
        self._change()

    def check(self) -> None:
        """Assert conservation. For tests and for debugging."""
        self._books.check()
        self._tickets.check()

    # --- inside ------------------------------------------------------------------------------------------

    def _ready(self, step: int) -> bool:
        """Whether `pull` can answer for `step` now."""
        course = self._course
        if course.failure is not None or course.stopped or step <= course.sealed:
            return True
        if step != course.trained + 1:
            return False  # a rank is ahead of the one that reports `trained`
        if course.phase == "ended" or (course.finished and not self._books.leased):
            return True
        return len(self._books.buffered) >= course.admission.groups_per_step

    def _seal(self, step: int) -> bool:
        """Fix the groups of `step`: the oldest first. False when there is no such step."""
        books, course = self._books, self._course
        if not course.open or not books.buffered:
            return False
        chosen = books.seal(course.admission.groups_per_step)
        course.sealed = step
        stretch = course.stretch(step)
        first = sum(len(entry.held.comparisons) for entry in chosen)
        self._tickets.seal(step, first, stretch)
        later = self._tickets.sealed
        self._records.sealed([course.lag(entry.held.version, step) for entry in chosen], first, len(later))
        self._records.note("seal", step=step, groups=list(books.sealed), later=[[*key] for key in later])
        if step == stretch.last:
            for entries in (books.leased, books.buffered):
                for name in list(entries):
                    self._drop(entries, name, course.over(step))
        self._drop_stale()
        left = bool(books.leased or books.buffered)
        course.drained = course.phase == "ended" or (course.finished and not left)
        self._change()
        return True

    def _refused(self, name: str, fence: int) -> bool:
        """Whether a message about a group is void. It changes nothing then, and is counted by its kind."""
        attempt = fence >> 32
        why = "rolled_back" if attempt != self._attempt else self._books.void(name, fence)
        if why is None:
            return False
        self._books.tally[why] += 1
        self._records.note("refused", why=why, group=name, fence=fence)
        return True

    def _expire(self) -> None:
        """Void the leases that take too long."""
        for entry in self._deadlines.overdue(self._books.leased):
            self._books.tally["expired"] += 1
            self._expired.add(entry.lease.fence)
            detail = f"no receipt and no fault within {self._deadlines.lease_s:g} s"
            self._void(entry, RoleFailed(EXPIRED, "producer", detail).fault(entry.lease.group))

    def _void(self, entry: Entry, fault: Fault) -> Verdict:
        """The lease of `entry` failed: what becomes of the group."""
        verdict = entry.void(fault, self._max_tries, self._records.seconds)
        self._records.note("fault", group=entry.lease.group, **entry.faults[-1], verdict=verdict)
        self._books.tally["blameless"] += fault.reason in BLAMELESS
        if not self._course.open:
            entry.verdict = verdict = "drop"  # it stays where it is, to be released
        elif verdict == "drop":
            if fault.retry:
                self._records.note("dead_letter", **entry.evidence())
            reason = "dead_letter" if fault.retry else fault.reason
            self._drop(self._books.leased, entry.lease.group, reason, entry.story)
        self._change()
        return verdict

    def _drop_stale(self) -> None:
        """Drop what would be over its lag at the next hand-out; its slot is free for a replacement."""
        course, step = self._course, self._course.sealed + 1
        allowed = course.stretch(step).max_lag
        for name, entry in list(self._books.buffered.items()):
            if (lag := course.lag(entry.held.version, step)) > allowed:
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
        self._course.failure = self._course.failure or why
        self._records.note("failed", reason=self._course.failure)

    def _fenced(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise PermissionError(
                f"refused: the caller belongs to attempt {attempt}, the ledger to {self._attempt}"
            )

    def _change(self) -> None:
        """Wake everybody who waits. Also the place where a run without a single step is found out."""
        course = self._course
        if course.finished and not (self._books.live or course.trained or course.stopped or course.failure):
            self._fail(f"the data ended before a single step; groups dropped: {self._books.drops()}")
        self._news.tell()
