"""Values that pass between the gateway, the replicas and the conductor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.types import MediaKind

Kind = Literal["chat", "completion", "embedding"]
State = Literal["loading", "serving", "swapping", "quarantined"]
Task = Literal["generate", "embed"]
SLOTS = ("stable", "canary")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered checkpoint."""

    id: str  # `version_id(digest)`
    path: str  # where replicas read it; never shown to clients
    digest: str  # SHA-256 of its manifest


def version_id(digest: str) -> str:
    """The public name of a version, of the SHA-256 of its files."""
    return f"v-{digest[:12]}"


def over(base: str, adapter: str) -> str:
    """The version of an adapter's answers, which names that of the base as well."""
    return f"{base}+{adapter}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole OpenAI object, or one chunk of a stream; all of a request are of one version."""

    version: str
    replica: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The replica could not, or would not, answer. The message is safe to show to clients."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a replica stands. It is ready when it serves the version that its slot is to have."""

    replica: str
    slot: str
    version: str | None
    state: State
    in_flight: int
    detail: str = ""
    closed_s: float = 0.0  # how long the last change-over, or the start, kept its gate closed
    refused: tuple[str, ...] = ()  # versions that it lately could not change over to
    model: str = ""  # its public name; the conductor fills it in


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which versions a model's clients get; `weight` is the share of clients on the canary, 0 to 1."""

    model: str
    stable: str
    canary: str | None = None
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do; the gateway refuses the rest before an engine sees it."""

    task: Task = "generate"
    tools: bool = False
    media: frozenset[MediaKind] = frozenset()
