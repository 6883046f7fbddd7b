"""Drawing answers token by token: how logits are mixed, and how tokens are picked from them.

Every request draws from its own random numbers, made before the first token, so that its answers do not
depend on the requests that happen to share its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.cached_model import CachedModel, Context
from pipelines.decoding import Contrast, Decoder, FromCheckpoint, FromReference, Grounded, Mixture


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: n answers to one prompt."""

    context: Context  # its `answer` is the beginning that is continued
    second: Context | None = None  # what the decoder's second forward reads
    n: int = 1
    seed: int = 0
    max_tokens: int  # of the continuation
    decoder: Decoder  # with its temperature resolved


@dataclass(frozen=True, kw_only=True)
class Answer:
    tokens: tuple[int, ...]  # [length] the beginning included
    logps: tuple[float, ...]  # [length] the policy's own log-probabilities, temperature 1, nothing masked
    finished: bool  # it ended by itself


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    forbidden: tuple[int, ...]  # never sampled
    eos: frozenset[int]
    top_p: float = 1.0


Second = Callable[[Decoder], CachedModel]  # the model of the second forward


def draw(
    policy: CachedModel, second: Second, asks: Sequence[Ask], vocabulary: Vocabulary
) -> list[list[Answer]]:
    """The answers of some requests that share one decoder, decoded together."""
    return _Drawing(policy, second, asks, vocabulary).run()


class _Drawing:
    """One batch. Row r of R is an answer; rows that have ended leave the batch."""

    def __init__(
        self, policy: CachedModel, second: Second, asks: Sequence[Ask], vocabulary: Vocabulary
    ) -> None:
        self.asks, self.vocabulary, self.decoder = asks, vocabulary, asks[0].decoder
        self.models = [policy]
        contexts = [[ask.context for ask in asks]]
        if any(ask.second is not None for ask in asks):
            self.models.append(second(self.decoder))
            contexts.append([ask.second or ask.context for ask in asks])
        read = [model.read(shown) for model, shown in zip(self.models, contexts, strict=True)]
        self.growing = [growing for _, growing in read]
        owner = [index for index, ask in enumerate(asks) for _ in range(ask.n)]
        rows = torch.tensor(owner, device=policy.model.device)
        for growing in self.growing:
            growing.select(rows)
        self.logits = [torch.stack([each[-1] for each in logits])[rows] for logits, _ in read]
        self.beginnings = [_given(ask.context, logits) for ask, logits in zip(asks, read[0][0], strict=True)]
        self.owner = owner
        self.longest = max(ask.max_tokens for ask in asks)
        self.random = torch.cat([_uniforms(ask, self.longest) for ask in asks], dim=1).to(rows.device)
        self.limits = torch.tensor([asks[i].max_tokens for i in owner], device=rows.device)
        self.begun = torch.tensor([len(asks[i].context.answer) for i in owner], device=rows.device)

    @torch.inference_mode()
    def run(self) -> list[list[Answer]]:
        count = len(self.owner)
        device = self.random.device
        tokens = torch.full((count, self.longest), -1, dtype=torch.long, device=device)
        logps = torch.zeros(count, self.longest, device=device)
        eos = torch.tensor(sorted(self.vocabulary.eos), device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        live = torch.arange(count, device=device)
        for t in range(self.longest):
            token = self._pick(t, live)
            own = self.logits[0].log_softmax(dim=-1)
            tokens[live, t] = token
            logps[live, t] = own.gather(-1, token[:, None]).squeeze(-1)
            ended[live] = torch.isin(token, eos)
            going = torch.nonzero(~ended[live] & (t + 1 < self.limits[live])).squeeze(-1)
            if len(going) == 0:
                break
            if len(going) < len(live):
                live, token = live[going], token[going]
                for growing in self.growing:
                    growing.select(going)
            self.logits = [
                model.step(growing, token) for model, growing in zip(self.models, self.growing, strict=True)
            ]
        return self._answers(tokens.tolist(), logps.tolist(), ended.tolist())

    def _pick(self, t: int, live: Tensor) -> Tensor:
        logits = combined(self.decoder, self.logits, self.begun[live] + t)
        logits[:, list(self.vocabulary.forbidden)] = -math.inf
        temperature = self.decoder.temperature
        if not temperature:
            return logits.argmax(dim=-1)
        return picked(logits / temperature, self.vocabulary.top_p, self.random[t, live])

    def _answers(
        self, tokens: list[list[int]], logps: list[list[float]], ended: list[bool]
    ) -> list[list[Answer]]:
        answers: list[list[Answer]] = [[] for _ in self.asks]
        for row, owner in enumerate(self.owner):
            length = sum(token >= 0 for token in tokens[row])
            given, given_logps = self.beginnings[owner]
            answers[owner].append(
                Answer(
                    tokens=(*given, *tokens[row][:length]),
                    logps=(*given_logps, *logps[row][:length]),
                    finished=ended[row],
                )
            )
        return answers


def _uniforms(ask: Ask, steps: int) -> Tensor:
    """[steps, n] float64; number i of step t is the same whatever `steps` is."""
    generator = torch.Generator().manual_seed(ask.seed)
    return torch.rand(steps, ask.n, dtype=torch.float64, generator=generator)


def _given(context: Context, logits: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The beginning of an answer and its log-probabilities."""
    own = logits[:-1].log_softmax(dim=-1)
    return context.answer, tuple(own[i, token].item() for i, token in enumerate(context.answer))


def combined(decoder: Decoder, logits: Sequence[Tensor], place: Tensor) -> Tensor:
    """What a decoder draws from, [R, vocabulary], up to a constant per row; a tensor of its own.

    `logits`: of the policy and, where the decoder has one, of the second forward. `place` [R]: index of the
    token in its answer. The formulas are in `pipelines.decoding`.
    """
    policy = logits[0]
    if isinstance(decoder, FromReference | FromCheckpoint):
        return logits[1].clone()
    if isinstance(decoder, Mixture):
        share = decoder.reference_share
        return share * logits[1] + (1 - share) * policy
    if isinstance(decoder, Contrast):
        contrast = (1 + decoder.alpha) * policy - decoder.alpha * logits[1]
        likeliest = policy.max(dim=-1, keepdim=True).values
        plausible = (policy - likeliest).exp() >= decoder.cutoff
        return contrast.masked_fill(~plausible, -math.inf)
    if isinstance(decoder, Grounded):
        own, blind = policy.log_softmax(dim=-1), logits[1].log_softmax(dim=-1)
        trust = torch.exp(-decoder.decay * place.double()).to(own.dtype)[:, None]
        unsure = own.max(dim=-1, keepdim=True).values.exp() < decoder.alpha
        return torch.where(unsure, own + (1 - trust) / trust * (own - blind), own)
    return policy.clone()


def picked(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """One token per row [R] by inversion: the first whose cumulated probability exceeds `uniform` [R].

    Below 1, `top_p` keeps the smallest set of likeliest tokens that together have at least this probability.
    """
    probabilities = logits.double().softmax(dim=-1)
    if top_p < 1.0:
        ordered, indices = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(outside.gather(-1, indices.argsort(dim=-1)), 0.0)
    cumulated = probabilities.cumsum(dim=-1)
    threshold = (uniform * cumulated[:, -1])[:, None]
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
