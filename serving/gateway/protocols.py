"""What the gateway needs from the others; each is a few methods, so that tests and stubs are short."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from serving.gateway.admission import Held
from serving.gateway.schema import MediaPart
from serving.wire import Answer, Kind, Refusal, Routing, Standing


class Backend(Protocol):
    """The replicas, and the conductor that knows which version each slot has."""

    def answer(
        self, slot: str, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        """Answers of one replica of the slot of `body["model"]`; closing the generator aborts the request."""
        ...

    async def routing(self, model: str | None) -> Routing | None:
        """Versions behind a public model name (None: the default model); None: no such model."""
        ...

    async def models(self) -> list[str]: ...

    async def ready(self) -> bool:
        """Whether every model's promoted version is served."""
        ...

    async def standings(self) -> list[Standing]: ...

    async def observe(self, slot: str, sample: dict[str, Any]) -> None:
        """A live measurement: model, version, status, seconds, first_s, tokens, finish reasons."""
        ...

    async def history(self) -> list[dict[str, Any]]: ...


class Client(Protocol):
    """Who asks. The id says nothing about the key and may be logged."""

    @property
    def id(self) -> str: ...


class Keys(Protocol):
    def check(self, authorization: str | None) -> Client | None:
        """The client of an Authorization header; None: no such key."""
        ...


class Quotas(Protocol):
    def take(self, client: Client, tokens: int) -> Refusal | None:
        """Admit one request that may cost up to `tokens`, or say when to come back."""
        ...

    def give(self, client: Client, reserved: int, used: int) -> None:
        """An admitted request ended: `used` of the `reserved` tokens were spent."""
        ...


class FeedbackStore(Protocol):
    async def remember(
        self,
        *,
        answer_id: str,
        client: str,
        version: str,
        prompt: dict[str, Any],
        answer: dict[str, Any],
        header: bool,
        key: bool,
    ) -> None:
        """Offer one answered chat (validated request, whole answer); the store decides what it keeps.

        `header`, `key`: whether the request, or the client's key, consents."""
        ...

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        """Durably keep a validated FeedbackRequest, or say why not."""
        ...


#: Media parts -> clean data URLs in the same order, counted in what the request holds; raises `ApiError`.
Clean = Callable[[Sequence[MediaPart], Held], Awaitable[list[str]]]


class Selectors(Protocol):
    """Inference-time selection. `Ask` answers one chat body without streaming."""

    def check(self, options: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Raises `ApiError` for options that cannot be used."""
        ...

    def asked(self, options: Mapping[str, Any], body: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The chats whose tokens a selection is going to cost."""
        ...

    async def run(
        self,
        options: Mapping[str, Any],
        body: dict[str, Any],
        ask: Callable[[dict[str, Any]], Awaitable[Answer | Refusal]],
    ) -> Answer | Refusal: ...
