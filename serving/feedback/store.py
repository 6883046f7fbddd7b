"""Answers and what people think of them, written to a folder.

An answer is held in memory for an hour, so that it can be spoken of; it is written when somebody does, or
when it belongs to the sample of the traffic. Both need consent. Every text passes the redaction hook before
it is written, and where the hook fails nothing is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pipelines import durable
from pipelines.data import served
from pipelines.data.served import Event
from serving.feedback.forgetting import sweep
from serving.feedback.offers import Offered, Unsuited, offer
from serving.feedback.redaction import Redact, load_redaction, redacted
from serving.settings import FeedbackSettings
from serving.wire import Refusal

Consent = Literal["off", "header", "key", "all"]

HELD_S: Final = 3600.0  # how long an answer can be spoken of that is not written yet
HELD_BYTES: Final = 256 * 2**20  # of such answers together; the oldest go first
MIB: Final = 2**20
UNKNOWN: Final = (
    "no such answer of yours: it is unknown, longer ago than an hour, or nothing is kept of it (no consent; "
    "tools, video or audio)"
)
DIFFERENT: Final = "a choice is between two answers to the same prompt; these were to different ones"
NOT_REDACTED: Final = "the feedback could not be redacted, so it was not kept"
PARTS: Final = 16  # segments of a full folder

log = logging.getLogger(__name__)


class FeedbackStore:
    """Answers and feedback on them, in `folder`. One process writes; several may, since writers lock.

    Args:
        consent: whose answers may be kept: of nobody, of requests with the header `x-plumbline-consent: yes`,
            of keys that were made with consent, of all.
        sample: share of those answers that is written without anybody's feedback.
        redact: text in, text out; applied to every text before it is written.
        max_mib: of log and pictures together. Above it the oldest sixteenth goes, feedback included.
        clock: seconds since the epoch.

    `counts` says what became of it all: answers, feedback, repeated, replaced, unsuited, redaction_failed,
    torn, evicted (segments).
    """

    def __init__(
        self,
        folder: Path,
        *,
        consent: Consent = "off",
        sample: float = 0.0,
        redact: Redact | None = None,
        max_mib: float = 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.counts = folder, Counter[str]()
        self._consent, self._sample, self._redact = consent, sample, redact
        self._limit, self._clock = int(max_mib * MIB), clock
        self._held: OrderedDict[str, tuple[float, Offered]] = OrderedDict()
        self._lock = threading.Lock()
        (folder / served.LOG).mkdir(parents=True, exist_ok=True)
        (folder / served.MEDIA).mkdir(exist_ok=True)
        with served.locked(folder):
            self._load()

    @classmethod
    def of(cls, settings: FeedbackSettings) -> FeedbackStore | None:
        """The store that a server's settings ask for; None: it keeps nothing. Raises SettingsError."""
        if settings.folder is None or settings.consent == "off":
            return None
        redact = None if settings.redact is None else load_redaction(settings.redact)
        return cls(
            Path(settings.folder),
            consent=settings.consent,
            sample=settings.sample,
            redact=redact,
            max_mib=settings.max_mib,
        )

    async def remember(
        self,
        *,
        answer_id: str,
        client: str,
        version: str,
        prompt: dict[str, Any],
        answer: dict[str, Any],
        header: bool = False,
        key: bool = False,
    ) -> None:
        """Offer one answered chat (validated request, whole answer). `header`, `key`: who has consented."""
        if not {"off": False, "header": header, "key": key, "all": True}[self._consent]:
            return
        try:
            offered = offer(answer_id, client, version, prompt, answer)
        except Unsuited:
            self.counts["unsuited"] += 1
            return
        await asyncio.to_thread(self._remember, offered)

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        """Durably keep feedback, or say why not. The same again changes nothing; another opinion replaces
        the earlier one, and both are on record."""
        return await asyncio.to_thread(self._rate, client, feedback)

    # -- in a thread ----------------------------------------------------------------------------------------

    def _remember(self, offered: Offered) -> None:
        name = offered.event["id"]
        drawn = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < self._sample
        with self._lock:
            if drawn:
                clean = self._clean([offered.event])
                if clean is not None:
                    self._write(clean, offered.media, (name,))
                return
            self._held[name] = (self._clock(), offered)
            total = sum(kept.size for _, kept in self._held.values())
            while total > HELD_BYTES or self._clock() - next(iter(self._held.values()))[0] > HELD_S:
                _, (_, oldest) = self._held.popitem(last=False)
                total -= oldest.size

    def _rate(self, client: str, feedback: dict[str, Any]) -> Refusal | None:
        feedback = {**{k: v for k, v in feedback.items() if v is not None}, "client": client}
        names = served.named(feedback)
        with self._lock:
            with served.locked(self.folder):
                self._catch_up()
            if not all(self._has(name, client) for name in names):
                return Refusal(status=404, code="answer_not_found", message=UNKNOWN)
            new = [self._held[name][1] for name in names if name not in self._known]
            clean = self._clean([*(offered.event for offered in new), feedback])
            if clean is None:
                return Refusal(status=503, code="redaction_failed", message=NOT_REDACTED)
            asked = {self._known[name][1] for name in names if name in self._known}
            if len(asked | {served.prompt_key(event) for event in clean[:-1]}) > 1:
                return Refusal(status=400, code="different_prompts", message=DIFFERENT)
            media = {k: v for offered in new for k, v in offered.media.items()}
            if not self._write(clean, media, names):
                return Refusal(status=404, code="answer_not_found", message=UNKNOWN)
            for name in names:
                self._held.pop(name, None)
        return None

    def _has(self, name: str, client: str) -> bool:
        """Whether the client was given that answer, and it is written or still held."""
        if name in self._known:
            return self._known[name][0] == client
        since, offered = self._held.get(name, (0.0, None))
        fresh = self._clock() - since <= HELD_S
        return offered is not None and fresh and offered.event["client"] == client

    def _clean(self, events: list[Event]) -> list[Event] | None:
        """The events without what is not to be kept; None: the redaction failed."""
        if self._redact is None:
            return events
        try:
            return [redacted(event, self._redact) for event in events]
        except Exception:  # of the user's making; what it says may hold what it was given
            self.counts["redaction_failed"] += 1
            log.warning("feedback: the redaction hook failed, so nothing was written")
            return None

    def _write(self, events: list[Event], media: dict[str, bytes], names: Sequence[str]) -> bool:
        """All of it durably, pictures first. Raises OSError; then no event is written.

        False: nothing was written, since an answer of `names` that was written before is forgotten meanwhile.
        """
        with served.locked(self.folder):
            self._catch_up()
            written = {event["id"] for event in events if event["kind"] == "answer"}
            if not written.union(self._known).issuperset(names):
                return False
            for name, data in media.items():
                path = self.folder / served.MEDIA / name
                if not path.exists():
                    durable.replace_file(path, data)
                    self._grow(len(data))
            noted = [line for line in map(self._noted, events) if line is not None]
            if noted:
                self._append(noted)
        return True

    def _noted(self, event: Event) -> Event | None:
        """What is to be written of it; None: it is there already."""
        if event["kind"] == "answer":
            if event["id"] in self._known:
                return None
            self._known[event["id"]] = (event["client"], served.prompt_key(event))
            self.counts["answers"] += 1
            return {**event, "at": self._clock()}
        key, opinion = served.key_of(event), _opinion(event)
        before = self._opinions.get(key)
        if opinion == before:
            self.counts["repeated"] += 1
            return None
        self._opinions[key] = opinion
        self.counts["feedback"] += 1
        self.counts["replaced"] += before is not None
        return {**event, "at": self._clock(), **({} if before is None else {"replaces": before})}

    def _append(self, events: list[Event]) -> None:
        content = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)
        path = self._segment
        try:
            durable.append(path, content, 0o600)
        except OSError:
            self._load()  # nothing of it happened
            raise
        self._seen = self._stamps()
        self._grow(len(content))
        if self._since_rotation >= self._limit / PARTS:
            self._segment = path.with_name(f"{int(path.stem) + 1:08d}.jsonl")
            self._since_rotation = 0
        if self._bytes > self._limit:
            self._evict()

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._since_rotation += size

    def _evict(self) -> None:
        """The oldest segments go, with the pictures that nothing shows any more."""
        for path in served.segments(self.folder):
            if self._size() <= self._limit:
                break
            path.unlink()
            self.counts["evicted"] += 1
            sweep(self.folder)
        self._load()

    # -- the folder -----------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Another writer may have been here."""
        if self._stamps() != self._seen:
            self._load()

    def _load(self) -> None:
        """What is in the folder; for the holder of its lock. A last line that a crash cut is removed."""
        found = served.read(self.folder)
        kept = served.segments(self.folder)
        if found.torn:
            self.counts["torn"] += found.torn
            for path in kept:
                durable.mend(path)
        self._known = {e["id"]: (e["client"], served.prompt_key(e)) for e in found.events if "answer" in e}
        self._opinions = {served.key_of(e): _opinion(e) for e in found.events if e["kind"] != "answer"}
        self._segment = kept[-1] if kept else self.folder / served.LOG / f"{1:08d}.jsonl"
        self._seen = self._stamps()
        self._bytes, self._since_rotation = self._size(), kept[-1].stat().st_size if kept else 0

    def _stamps(self) -> list[tuple[str, int, int, int]]:
        """Changes with any change of the log, of old segments too: somebody may have been forgotten."""
        found = [(path.name, path.stat()) for path in served.segments(self.folder)]
        return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]

    def _size(self) -> int:
        files = [*served.segments(self.folder), *(self.folder / served.MEDIA).iterdir()]
        return sum(path.stat().st_size for path in files)


def _opinion(event: Event) -> str | int:
    """What feedback says, without when and in which words else."""
    return event[{"rating": "rating", "choice": "chosen", "correction": "correction"}[event["kind"]]]
