"""A request that tokens are spent on, from its validated body to its last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Send

from serving.gateway import bounds, capabilities, errors, logs
from serving.gateway.admission import Held
from serving.gateway.dispatch import Answers, Dispatch, Target, pick
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.gateway.middleware import GONE, Anonymous, Call
from serving.gateway.protocols import Backend, Clean, FeedbackStore, Quotas, Selectors
from serving.gateway.streaming import send_events, send_whole
from serving.gateway.transcript import Transcript
from serving.gateway.votes import Origin, Votes
from serving.registry.promotion import is_refusal
from serving.settings import Settings
from serving.wire import Answer, Capabilities, Kind, Refusal, Routing

PREFIX: dict[Kind, str] = {"chat": "chatcmpl", "completion": "cmpl"}
SELECTION_TRIES = 3  # a selection over answers of two versions, in the moment of a swap, is made again


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What exchanges work with; what is None is switched off."""

    settings: Settings
    backend: Backend
    metrics: Metrics
    quotas: Quotas | None = None
    clean: Clean | None = None
    feedback: FeedbackStore | None = None
    selectors: Selectors | None = None
    # of models by public name; one that is not listed is asked for anything
    capabilities: Mapping[str, Capabilities] = field(default_factory=dict[str, Capabilities])


@dataclass
class Outcome:
    """What is known of an answer when it ends, for metrics, logs, quotas and the canary's gate."""

    slot: str
    version: str | None = None
    first_s: float | None = None
    usage: dict[str, int] = field(default_factory=dict)
    finish: list[str] = field(default_factory=list)
    refused: bool | None = None  # None: nothing was said

    def note(self, body: dict[str, Any]) -> None:
        given = body.get("usage") or {}
        self.usage |= {key: n for key, n in given.items() if isinstance(n, int)}
        choices = body.get("choices") or ()
        self.finish += [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]

    def judge(self, answer: dict[str, Any]) -> None:
        """Look at a whole chat answer."""
        message = next((choice["message"] for choice in answer.get("choices", ())), {})
        text = message.get("content")
        self.refused = None if text is None else is_refusal(text)

    def sample(self, model: str, status: int, seconds: float) -> dict[str, Any]:
        spoken = {} if self.refused is None else {"refused": self.refused}
        return {
            **spoken,
            "model": model,
            "version": self.version,
            "status": status,
            "seconds": seconds,
            "first_s": self.first_s,
            "tokens": self.usage.get("completion_tokens", 0),
            "finish": self.finish,
        }


class Exchanges:
    """What the exchanges of a gateway share."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.dispatch = Dispatch(parts.backend, parts.settings.load, parts.metrics)
        self.votes = Votes()
        self._later: set[asyncio.Task[None]] = set()

    async def open(self, kind: Kind, body: dict[str, Any], call: Call) -> Exchange:
        """The exchange of a validated body. Raises ApiError (400, 404)."""
        routing = await self.parts.backend.routing(body["model"])
        if routing is None:
            raise errors.no_such_model(body["model"])
        can = self.parts.capabilities.get(body["model"])
        if can is not None:
            capabilities.require(kind, body, can)
        options = dict(body.pop("plumbline", None) or {})
        version = options.pop("version", None)
        if version is None:
            target = Target(model=routing.model, slot=self._slot(routing, body, call))
        else:
            target = Target(model=routing.model, slot=_slot_of(version, routing), pinned=True)
        if options:
            self._check_selection(options, body)
        call.fields |= {"model": routing.model, "kind": kind, "answer": call.answer_id}
        return Exchange(self, kind, body, call, target, options)

    def judged(self, feedback: dict[str, Any]) -> None:
        """Somebody judged an answer; the canary's gate is told."""
        for slot, sample in self.votes.samples(feedback):
            self.later(self.parts.backend.observe(slot, sample), "a measurement was lost")

    def later(self, work: Awaitable[None], what: str) -> None:
        """Do what no client has to wait for. A failure is logged as `what` and counted."""

        async def watched() -> None:
            try:
                await work
            except Exception as error:
                self.parts.metrics.lost.inc()
                logs.failure(what, error)

        task = asyncio.create_task(watched())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def _slot(self, routing: Routing, body: dict[str, Any], call: Call) -> str:
        """Sticky for a key and a `user`; somebody without either has nothing to be recognised by."""
        known = not isinstance(call.client, Anonymous) or "user" in body
        who = f"{call.client.id}\0{body.get('user', '')}" if known else call.answer_id
        return pick(routing, who, self.parts.settings.canary.salt)

    def _check_selection(self, options: dict[str, Any], body: dict[str, Any]) -> None:
        if self.parts.selectors is None:
            raise ApiError(400, "plumbline: this server selects nothing; remove the field", param="plumbline")
        if body.get("stream"):
            raise ApiError(
                400, "plumbline: a selection is known only at its end; remove stream", param="plumbline"
            )
        self.parts.selectors.check(options, body)


class Exchange:
    """One request."""

    def __init__(
        self,
        shared: Exchanges,
        kind: Kind,
        body: dict[str, Any],
        call: Call,
        target: Target,
        options: dict[str, Any],
    ) -> None:
        self._shared, self._parts, self._dispatch = shared, shared.parts, shared.dispatch
        self._kind: Kind = kind
        self._body, self._call, self._target, self._options = body, call, target, options
        self._outcome = Outcome(target.slot)
        self._limits = shared.parts.settings.limits

    @contextmanager
    def quota(self) -> Iterator[None]:
        """Raises ApiError (429) for a client that has had its share."""
        quotas, client = self._parts.quotas, self._call.client
        if quotas is None:
            yield
            return
        reserved = sum(bounds.cost(chat, self._limits) for chat in self._asked())
        refusal = quotas.take(client, reserved)
        if refusal is not None:
            raise ApiError.of(refusal)
        try:
            yield
        finally:
            quotas.give(client, reserved, self._call.fields.get("tokens", 0))

    def _asked(self) -> Sequence[dict[str, Any]]:
        """What replicas are going to be asked."""
        selectors = self._parts.selectors
        return selectors.asked(self._options, self._body) if self._options and selectors else [self._body]

    async def run(self, send: Send, held: Held) -> None:
        """Clean the media, get the answer, send it. `held` counts what the request holds."""
        if self._kind == "chat":
            await self._clean(held)
        with self._accounted():
            if self._options:
                await self._send_whole(self._target.slot, await self._selected(), send)
            elif self._body.get("stream"):
                await self._stream(send)
            else:
                slot, answer = await self._dispatch.whole(
                    self._target, self._kind, self._body, self._call.answer_id
                )
                await self._send_whole(slot, answer, send)

    async def _clean(self, held: Held) -> None:
        media = bounds.media_of(self._body, self._limits)
        if not media:
            return
        if self._parts.clean is None:
            raise ApiError(400, f"{media[0].param}: this server takes no media", param=media[0].param)
        bounds.with_media(self._body, await self._parts.clean(media, held))

    async def _selected(self) -> Answer:
        selectors = self._parts.selectors
        assert selectors is not None  # `Exchanges.open` refused the options otherwise
        for attempt in range(SELECTION_TRIES):
            ask = _Asker(self._dispatch, self._target, f"{self._call.answer_id}-s{attempt}")
            answer = await selectors.run(self._options, dict(self._body), ask)
            if isinstance(answer, Refusal):
                raise ApiError.of(answer)
            if len(ask.versions) <= 1:
                return answer
        raise ApiError(503, "the model's version changed meanwhile; try again", code="version_changed")

    async def _send_whole(self, slot: str, answer: Answer, send: Send) -> None:
        self._outcome.slot, self._outcome.version = slot, answer.version
        self._outcome.note(answer.body)
        body = self._labelled(answer)
        self._remember(answer.version, body)
        await send_whole(body, {"x-plumbline-version": answer.version}, send)

    async def _stream(self, send: Send) -> None:
        # What it cost is counted in any case.
        asked = {**self._body, "stream_options": {"include_usage": True}}
        transcript = Transcript()
        async with self._dispatch.answers(self._target, self._kind, asked, self._call.answer_id) as answers:
            outcome, first_s = self._outcome, self._call.seconds
            outcome.slot, outcome.version, outcome.first_s = answers.slot, answers.version, first_s
            self._parts.metrics.first.observe(first_s)
            chunks = self._chunks(answers, transcript)
            await send_events(chunks, {"x-plumbline-version": answers.version}, send)
        self._remember(answers.version, transcript.answer())

    async def _chunks(self, answers: Answers, transcript: Transcript) -> AsyncIterator[dict[str, Any]]:
        wants_usage = (self._body.get("stream_options") or {}).get("include_usage", False)
        async for answer in answers.all():
            self._outcome.note(answer.body)
            chunk = self._labelled(answer)
            transcript.add(chunk)
            if not wants_usage:
                chunk.pop("usage", None)
            if wants_usage or chunk.get("choices"):
                yield chunk

    def _labelled(self, answer: Answer) -> dict[str, Any]:
        """Under our names: ids that feedback can refer to, and the version of the weights."""
        body = {**answer.body, "model": self._target.model}
        if self._kind in PREFIX:
            body |= {
                "id": f"{PREFIX[self._kind]}-{self._call.answer_id}",
                "system_fingerprint": answer.version,
            }
        return body

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        began, status = time.monotonic(), 500
        try:
            yield
            status = 200
        except ApiError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            self._account(status, time.monotonic() - began)

    def _account(self, status: int, seconds: float) -> None:
        outcome, model, metrics = self._outcome, self._target.model, self._parts.metrics
        for direction in ("prompt", "completion"):
            metrics.tokens.labels(model, direction).inc(outcome.usage.get(f"{direction}_tokens", 0))
        self._call.fields |= {
            "slot": outcome.slot,
            "version": outcome.version,
            "tokens": sum(outcome.usage.get(f"{d}_tokens", 0) for d in ("prompt", "completion")),
        }
        if status == 200 and outcome.version is not None:
            metrics.answers.labels(model, outcome.slot, outcome.version).inc()
        observed = self._parts.backend.observe(outcome.slot, outcome.sample(model, status, seconds))
        self._shared.later(observed, "a measurement was lost")

    def _remember(self, version: str, answer: dict[str, Any] | None) -> None:
        if self._kind != "chat":
            return
        if answer is not None:
            self._outcome.judge(answer)
            origin = Origin(self._target.model, self._outcome.slot, version)
            self._shared.votes.note(answer["id"], origin)
        if self._parts.settings.log_content:
            texts = _texts(self._body)
            logs.event("content", request_id=self._call.request_id, prompt=texts, answer=answer)
        store = self._parts.feedback
        if store is not None and answer is not None:
            kept = store.remember(
                answer_id=answer["id"],
                client=self._call.client.id,
                version=version,
                prompt=self._body,
                answer=answer,
                header=self._call.consents,
                key=getattr(self._call.client, "consents", False),
            )
            self._shared.later(kept, "an answer was not kept")


class _Asker:
    """Asks for one chat of a selection; remembers which versions answered."""

    def __init__(self, dispatch: Dispatch, target: Target, answer_id: str) -> None:
        self._dispatch, self._target, self._id = dispatch, target, answer_id
        self._count = 0
        self.versions: set[str] = set()

    async def __call__(self, body: dict[str, Any]) -> Answer | Refusal:
        self._count += 1
        try:
            _, answer = await self._dispatch.whole(self._target, "chat", body, f"{self._id}-{self._count}")
        except ApiError as error:
            return Refusal(
                status=error.status, code=error.code, message=error.message, retry_after_s=error.retry_after_s
            )
        self.versions.add(answer.version)
        return answer


def _slot_of(version: Any, routing: Routing) -> str:
    for slot in ("stable", "canary"):
        if version is not None and version == getattr(routing, slot):
            return slot
    raise ApiError(
        404,
        f"plumbline.version: {errors.shown(version)} is not served; GET /v1/versions lists what is",
        param="plumbline.version",
        code="version_not_found",
    )


def _texts(body: dict[str, Any]) -> list[Any]:
    """A chat without its media."""

    def text_of(message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        return {**message, "content": [part for part in content if part["type"] == "text"]}

    return [text_of(message) for message in body["messages"]]
