"""Which slot answers a request, and another try on another replica while the client has seen nothing yet."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.gateway import logs
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.gateway.protocols import Backend
from serving.settings import LoadSettings
from serving.wire import Answer, Kind, Refusal, Routing

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5  # between tries; each pause is twice the one before
LOSSES = 4  # replicas that one request may lose: it may be what kills them
LOST = ("unavailable", "replica_lost")
PATIENCE = 2  # tries of a canary before the stable version answers its clients


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a request goes."""

    model: str
    slot: str
    pinned: bool = False  # the client named the version, so that no other slot may answer


def pick(routing: Routing, who: str, salt: str) -> str:
    """The slot of a client: always the same one while salt and weight stay."""
    if routing.canary is None:
        return "stable"
    digest = hashlib.sha256(f"{salt}\0{who}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "canary" if share < routing.weight else "stable"


@dataclass
class Answers:
    """The answers to one request, all of one version; `slot` is the one that gave them."""

    slot: str
    first: Answer
    _rest: AsyncGenerator[Answer | Refusal, None]
    _deadline: float  # of the event loop's clock
    _metrics: Metrics
    version: str = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.first.version

    async def all(self) -> AsyncIterator[Answer]:
        """Raises ApiError when the replica gives up on the way, or changed its version (which is a bug)."""
        yield self.first
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    answer = await anext(self._rest)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _too_slow() from None
            except Exception as error:
                logs.failure("replica failed", error, slot=self.slot, started=True)
                raise ApiError(503, "the answer broke off; try again", code="unavailable") from None
            if isinstance(answer, Refusal):
                raise ApiError.of(answer)
            if answer.version != self.version:
                self._metrics.mixed.inc()
                logs.event("mixed versions", replica=answer.replica, versions=[self.version, answer.version])
                raise ApiError(500, "the answer broke off; try again", code="mixed_versions")
            yield answer


def _too_slow() -> ApiError:
    return ApiError(504, "the answer took too long; ask for fewer tokens or answers")


class Dispatch:
    """Sends requests to replicas."""

    def __init__(self, backend: Backend, load: LoadSettings, metrics: Metrics) -> None:
        self._backend = backend
        self._retry_s = load.retry_s
        self._timeout_s = load.request_timeout_s
        self._metrics = metrics

    @asynccontextmanager
    async def answers(
        self, target: Target, kind: Kind, body: dict[str, Any], answer_id: str
    ) -> AsyncIterator[Answers]:
        """Open until the end of the block, which also ends the request at the replica."""
        clock = asyncio.get_running_loop().time
        pause, began = FIRST_PAUSE_S, clock()
        deadline, losses = began + self._timeout_s, 0
        for attempt in itertools.count():
            slot = self._slot(target, attempt)
            # Each try has an id of its own: an engine may still be ending the one before.
            stream = self._backend.answer(
                slot, kind, body, f"{answer_id}-{attempt}" if attempt else answer_id
            )
            async with aclosing(stream):
                try:
                    async with asyncio.timeout_at(deadline):
                        first = await self._first(stream, slot, answer_id)
                except TimeoutError:
                    raise _too_slow() from None
                if isinstance(first, Answer):
                    yield Answers(slot, first, stream, deadline, self._metrics)
                    return
            losses += first.code in LOST
            if first.status != 503 or losses == LOSSES or clock() - began + pause > self._retry_s:
                raise ApiError.of(first)
            self._metrics.retries.inc()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def whole(
        self, target: Target, kind: Kind, body: dict[str, Any], answer_id: str
    ) -> tuple[str, Answer]:
        """The slot that answered, and its one answer."""
        async with self.answers(target, kind, body, answer_id) as answers:
            return answers.slot, answers.first

    def _slot(self, target: Target, attempt: int) -> str:
        """A canary that cannot answer must not cost its clients their answer."""
        unwell = target.slot == "canary" and not target.pinned and attempt >= PATIENCE
        return "stable" if unwell else target.slot

    async def _first(
        self, stream: AsyncGenerator[Answer | Refusal, None], slot: str, answer_id: str
    ) -> Answer | Refusal:
        """The first answer; a replica that fails is one that refuses."""
        try:
            return await anext(stream)
        except StopAsyncIteration:
            cause: Exception = EOFError()
        except Exception as error:
            cause = error
        logs.failure("replica failed", cause, answer=answer_id, slot=slot)
        return Refusal(status=503, code="unavailable", message="no replica could answer; try again")
