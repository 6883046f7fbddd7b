"""How checkpoints are served: one YAML file with dotted overrides, validated before anything starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from pipelines import settings_files
from pipelines.settings import Section
from pipelines.settings_errors import SettingsError
from serving.limits import Count, Limits, Positive, Seconds
from serving.models import ModelSettings, PublicName, ReplicaSettings, disagreements
from serving.registry.canary import CanaryRules

__all__ = ["Settings", "SettingsError", "load"]

KIND: Final = settings_files.Kind(owner="a server", line="port: 8000", override="limits.media=2")

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TlsSettings(Section):
    """PEM files; the HTTP proxy speaks TLS when the section is there."""

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)


_LABEL = "[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?"
HOST_NAME = rf"{_LABEL}([.]{_LABEL})*"
Host = Annotated[
    str, Field(pattern=rf"^(https?://)?({HOST_NAME}|[*][.]{_LABEL}[.]{HOST_NAME})(:[0-9]{{1,5}})?$")
]


class RemoteSettings(Section):
    """Hosts that media are fetched from: media.example.org, *.example.org, http://plain.example.org:8080."""

    hosts: Annotated[list[Host], Field(min_length=1)]
    timeout_s: Seconds = 10  # for one medium, from its name to its last byte
    mib: Positive = 32  # of one medium
    redirects: Count = 0  # followed for one medium, to listed hosts alone


class MediaSettings(Section):
    decoders: Positive = 2  # processes that decode what clients send
    remote: RemoteSettings | None = None  # null: nothing is fetched, media are data URLs


class QuotaSettings(Section):
    """For every client that has no quota of its own; null: no bound."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent: Positive | None = None


class LoadSettings(Section):
    """What one gateway takes on; what is over it is answered with 503 and Retry-After."""

    concurrent: Positive = 128
    queue: Count = 256  # requests that wait for their turn
    queue_timeout_s: Seconds = 30
    request_timeout_s: Seconds = 300  # from the turn to the last byte
    bodies_mib: Positive = 1024  # of all requests together: bodies, media being fetched, clean media
    retry_s: Seconds = 30  # for so long a request is tried on other replicas, before its first byte


class CanarySettings(Section):
    salt: str = "plumbline"  # another salt draws another share of the clients
    rules: CanaryRules = CanaryRules()  # when a canary is taken back


class FeedbackSettings(Section):
    """What is kept of the traffic for later alignment. Nothing without a folder."""

    folder: str | None = None
    # whose answers may be kept: of requests with the header "x-plumbline-consent: yes", of keys made with
    # consent, or of everybody
    consent: Literal["off", "header", "key", "all"] = "off"
    sample: Share = 0.0  # of those answers, written without anybody's feedback
    # package.module:function or path/to/file.py:function, text in and text out, applied before it is written
    redact: str | None = None
    max_mib: Positive = 1024  # log and pictures; above it the oldest go


class SelectorSettings(Section):
    """Inference-time selection among several answers."""

    # the name by which requests ask for it -> package.module:function or path/to/file.py:function
    rewards: dict[str, str] = Field(default_factory=dict[str, str])
    timeout_s: Seconds = 30  # of one call of a reward


class Settings(Section):
    """A server."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    keys: str | None = None  # file of hashed API keys; null: no key is needed
    anonymous: bool = False  # serve beyond this machine without keys
    tls: TlsSettings | None = None
    registry: str | None = None  # folder of registered checkpoints
    limits: Limits = Limits()
    quotas: QuotaSettings = QuotaSettings()
    load: LoadSettings = LoadSettings()
    replicas: ReplicaSettings = ReplicaSettings()
    # several at once, by public name; without any, what the command names is served
    models: dict[PublicName, ModelSettings] = Field(default_factory=dict[str, ModelSettings])
    media: MediaSettings = MediaSettings()
    canary: CanarySettings = CanarySettings()
    feedback: FeedbackSettings = FeedbackSettings()
    selectors: SelectorSettings = SelectorSettings()
    log_content: bool = False  # prompts and answers in the logs

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        problems = list(_disagreements(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _disagreements(server: Settings) -> Iterator[str]:
    if server.keys is None and not server.anonymous and not is_loopback(server.host):
        yield (
            f"host: {server.host!r} is reachable from outside and no keys are asked for; "
            "create keys (plumbline keys add FILE) and set keys=FILE, or set anonymous=true"
        )
    if server.feedback.consent != "off" and server.feedback.folder is None:
        yield (
            f"feedback.consent: {server.feedback.consent!r} keeps feedback, but there is no folder for it; "
            "set feedback.folder"
        )
    if server.models and server.registry is not None:
        yield "registry: with models each one has its own; set models.NAME.registry instead"
    yield from disagreements(server.models)


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a YAML file (None: the defaults), with dotted overrides such as "limits.media=2".

    Relative paths are taken from the current directory. Raises SettingsError with every problem found.
    """
    given = settings_files.given(path, KIND)
    for override in overrides:
        given.override(override, KIND)
    return given.validated(Settings)
