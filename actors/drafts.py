"""Answers of a vLLM engine under way: several of one prompt, each perhaps under several weight versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engine import ABORTED
from actors.prover import Held
from pipelines.decoding import Decoder
from pipelines.types import MediaTable, Prompt

Spans = tuple[tuple[int, int], ...]


@dataclass
class Draft:
    """One answer without its given beginning; `reason`: why it ended, None while it may go on."""

    tokens: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])  # nats, of each token when it was sampled
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (version, tokens)
    reason: str | None = None

    def take(self, completion: Any, version: int) -> None:
        """Append what one engine request has added."""
        tokens = list(completion.token_ids)
        drawn = zip(completion.logprobs or (), tokens, strict=True)
        self.logps += [entry[token].logprob for entry, token in drawn]
        self.tokens += tokens
        if tokens:
            self.spans.append((version, len(tokens)))
        self.reason = None if completion.finish_reason == ABORTED else completion.finish_reason


@dataclass
class Asked:
    """A request for answers to one prompt, while it is carried out."""

    prompt: Prompt
    media: MediaTable
    n: int
    seed: int
    decoder: Decoder
    beginning: tuple[int, ...]  # tokens that every answer begins with
    drafts: list[Draft] = field(default_factory=list[Draft])
    beginning_logps: tuple[float, ...] | None = None  # under the first version; None: not known yet
    scored_by: int = -1  # the version that they are of
    versions: dict[int, Held] = field(default_factory=dict[int, Held])  # that took part, by number

    def __post_init__(self) -> None:
        self.drafts = [Draft() for _ in range(self.n)]
        self.beginning_logps = None if self.beginning else ()

    @property
    def done(self) -> bool:
        return all(draft.reason is not None for draft in self.drafts)

    def requests(self) -> list[list[Draft]]:
        """Drafts that go on, by request to the engine: those without a token of their own share one."""
        going = [draft for draft in self.drafts if draft.reason is None]
        fresh = [draft for draft in going if not draft.tokens]
        return [*([fresh] if fresh else []), *([draft] for draft in going if draft.tokens)]


def prefix_logps(output: Any, prefix: Sequence[int], count: int) -> tuple[float, ...] | None:
    """Log-probabilities of the first `count` tokens of a prefix, which vLLM takes as the end of the prompt.

    None where the request was interrupted before the engine had read its prompt.
    """
    entries = output.prompt_logprobs
    if not entries:
        return None
    scored = zip(entries[len(entries) - len(prefix) :], prefix, strict=True)
    return tuple(entry[token].logprob for entry, token in scored)[:count]


def joined(beginning: int, version: int, spans: Sequence[tuple[int, int]]) -> Spans:
    """Spans of a whole answer: a beginning of some tokens, scored under `version`, and what was added.

    Neighbours of one version become one.
    """
    whole: list[tuple[int, int]] = []
    for number, count in ((version, beginning), *spans):
        if whole and whole[-1][0] == number:
            number, count = number, whole.pop()[1] + count
        if count:
            whole.append((number, count))
    return tuple(whole)
