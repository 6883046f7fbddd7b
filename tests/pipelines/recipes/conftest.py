"""Tools with real logic on the glyphs world: captions that are true or not, a real reward, real damage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from pipelines.data.glyphs import GlyphsSource
from pipelines.decoding import Decoder
from pipelines.objectives.base import Reads
from pipelines.objectives.batch import tabulate
from pipelines.perturbations.base import DamageRequest, damage
from pipelines.recipe import Stage
from pipelines.recipes import load
from pipelines.rewards.base import AnyReward, judge_group
from pipelines.rewards.world import World
from pipelines.rollout import Draft, Drop, Probe, derived_seed
from pipelines.types import Behaviour, Comparison, Media, MediaTable, Prompt, Response, Rollout, Score
from pipelines.worlds.glyphs import edits
from pipelines.worlds.glyphs.vocabulary import WORDS

END = 2
UNKNOWN = 7
IDS = {word: 8 + number for number, word in enumerate(WORDS)}
TEXTS = {number: word for word, number in IDS.items()}


def encode(text: str) -> tuple[int, ...]:
    return tuple(IDS.get(word, UNKNOWN) for word in text.split())


def decode(tokens: Sequence[int]) -> str:
    return " ".join(TEXTS.get(token, "<unk>") for token in tokens if token != END)


@dataclass
class GlyphsTools:
    """A policy that describes what it is shown and errs more, the less it sees.

    The i-th answer to a clean prompt carries i mod `errors` false mentions (a single one by its seed), one to
    a damaged picture or to no question two more, and one without a picture or with hidden tokens describes
    another scene. Contrasted decoding makes no error. A continuation is the rest of what it would have said.
    Its log-probability of a word falls with the share of the picture that was changed.
    """

    reward: AnyReward = field(default_factory=lambda: World())
    errors: int = 4
    answers: Sequence[str] = ()  # to the clean prompt, in turn; empty: as above
    clean: str = ""  # digest of the clean picture; the first that is seen
    rollouts: list[tuple[Rollout, Decoder | None]] = field(default_factory=list)
    attention_on: int = 0

    async def sample(
        self,
        prompt: Prompt,
        media: MediaTable,
        n: int,
        seed: int,
        *,
        decoder: Decoder | None = None,
        prefix: Sequence[int] = (),
    ) -> Sequence[Rollout]:
        numbers = range(n) if n > 1 else [seed]
        made = [self._rollout(prompt, derived_seed(seed, i), i, decoder, prefix) for i in numbers]
        self.rollouts += [(rollout, decoder) for rollout in made]
        return made

    def _rollout(
        self, prompt: Prompt, seed: int, number: int, decoder: Decoder | None, prefix: Sequence[int]
    ) -> Rollout:
        stream = decoder.stream if decoder else "policy"
        text = self._says(prompt, seed, number if stream == "policy" else 0)
        tokens = (*prefix, *encode(text)[len(prefix) :], END)
        response = Response(
            tokens=tokens, text=decode(tokens), origin="stitched" if prefix else "sampled", finished=True
        )
        logps = (-0.5,) * len(tokens)
        behaviour = Behaviour(stream=stream, decoder={}, oldest=3, newest=3, logps=logps)
        return Rollout(prompt=prompt, response=response, behaviour=behaviour)

    def _says(self, prompt: Prompt, seed: int, number: int) -> str:
        gold = dict(prompt.gold)
        asked = " ".join(part.text for message in prompt.messages for part in message.parts)
        if "is the first answer good" in asked:
            return ("yes", "no")[(seed + number) % 2]
        if "list what is not true" in asked:
            return " ".join(gold["errors"][: 1 + number % len(gold["errors"])])
        truth = str(gold["answer"])
        if not prompt.media or prompt.acts:
            return "a green zero top left ." if gold["kind"] == "caption" else "yes"
        wrong = number % self.errors
        if len(prompt.media) > 1 or self.clean not in prompt.media or not asked:
            wrong += 2
        elif self.answers:
            return self.answers[number % len(self.answers)]
        if gold["kind"] != "caption":
            return edits.inject(truth, gold, seed)[0] if wrong else truth
        return edits.inject(truth, gold, seed, min(wrong, 5))[0] if wrong else truth

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> Sequence[Probe]:
        changed = 0.0
        if self.clean and self.clean not in prompt.media and prompt.media:
            one, other = media[self.clean].payload, media[prompt.media[0]].payload
            changed = float((one != other).mean()) if one.shape == other.shape else 1.0
        said = encode("a green zero top left .") if changed else None
        mass = tuple(1.0 if i == self.attention_on else 0.2 for i in range(len(prompt.media)))
        return [
            Probe(
                logps=tuple(-0.1 - changed for _ in response.tokens),
                top=tuple(
                    said[i % len(said)] if said and token != END else token
                    for i, token in enumerate(response.tokens)
                ),
                attention=mass if attention else (),
            )
            for response in responses
        ]

    async def score(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        return await judge_group(self.reward, rollouts, media)

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        return damage(media, request)

    async def encode(self, text: str, origin: str) -> Response:
        return Response(tokens=(*encode(text), END), text=text, origin=origin)

    async def decode(self, tokens: Sequence[int]) -> str:
        return decode(tokens)

    async def edit(self, rollout: Rollout, kind: str, seed: int, media: MediaTable) -> str:
        text, gold = rollout.response.text, rollout.prompt.gold
        return edits.inject(text, gold, seed)[0] if kind == "inject" else edits.correct(text, gold)

    async def foreign(self) -> Rollout | None:
        return None


@pytest.fixture
def glyphs_tools() -> Callable[..., GlyphsTools]:
    return GlyphsTools


@pytest.fixture
def glyphs_draft() -> Callable[..., Draft]:
    """The draft of a training row, a caption of two objects; with `questions` 1 a yes/no question."""

    def build(position: int = 1, questions: float = 0.0) -> Draft:
        source = GlyphsSource(count=position + 1, seed=0, questions=questions)
        prompt, media = source.prompt(source.row(None, position))
        return Draft(prompts={"x": prompt}, media=media)

    return build


def _run(stage: Stage, draft: Draft, tools: Any, seeds: int = 12) -> tuple[Draft, tuple[Comparison, ...]]:
    """The stage on one prompt, with the first seed whose group is not dropped."""
    reasons: list[str] = []
    for seed in range(seeds):
        tools.clean = draft.prompt.media[0]
        try:
            done = asyncio.run(stage.rollout(draft, tools, seed))
        except Drop as drop:
            reasons.append(drop.reason)
            continue
        if made := stage.compare("g", done):
            return done, made
        reasons.append("no_comparison")
    raise AssertionError(f"every group was dropped: {reasons}")


def _read(comparisons: tuple[Comparison, ...], seed: int = 0) -> Reads:
    """What the forward would read, from a random policy and reference that need a gradient."""
    table = tabulate(list(comparisons))
    reads = table.reads()
    gen = torch.Generator().manual_seed(seed)
    shape = reads.mask.shape

    def logps() -> torch.Tensor:
        return torch.where(reads.mask, -torch.rand(shape, generator=gen), 0.0)

    tokens = {"policy": logps().requires_grad_(), "reference": logps(), "behaviour": table.behaviour()}
    features = {
        name: torch.where(reads.mask, torch.rand(shape, generator=gen), 0.0)
        for name in ("kl_forward", "kl_reverse", "entropy")
    }
    features["collision"] = torch.where(reads.mask, -torch.rand(shape, generator=gen), 0.0)
    features["hidden"] = torch.rand((*shape, 8), generator=gen).requires_grad_()
    features["reference_hidden"] = torch.rand((*shape, 8), generator=gen)
    return replace(reads, tokens=tokens, features=features)


def _worth(
    stage: Stage,
    comparison: Comparison,
    rho: Mapping[str, float],
    kl: Mapping[str, float] | None = None,
    carry: Mapping[str, float] | None = None,
) -> float:
    """The objective of one comparison from log pi - log pi_ref per role, put on the first scored token."""
    table = tabulate([comparison])
    plain = table.reads()
    first = plain.mask.long().argmax(-1)
    policy, divergence = torch.zeros(plain.mask.shape), torch.zeros(plain.mask.shape)
    for candidate, row in zip(comparison.candidates, table.index[0], strict=True):
        policy[row, first[row]] = rho.get(candidate.role, 0.0)
        divergence[row, first[row]] = (kl or {}).get(candidate.role, 0.0)
    reads = replace(
        plain,
        tokens={"policy": policy, "reference": torch.zeros_like(policy), "behaviour": table.behaviour()},
        features={"kl_forward": divergence},
        carry=dict(carry or {}),
    )
    losses = [(weight, term(reads)) for weight, term in stage.objective.terms]
    return sum(weight * float(loss.value.sum() / loss.weight.sum()) for weight, loss in losses)


@pytest.fixture
def run() -> Callable[..., tuple[Draft, tuple[Comparison, ...]]]:
    return _run


@pytest.fixture
def read() -> Callable[..., Reads]:
    return _read


@pytest.fixture
def worth() -> Callable[..., float]:
    return _worth


@pytest.fixture
def play(
    glyphs_draft: Callable[..., Draft], glyphs_tools: Callable[..., GlyphsTools]
) -> Callable[..., tuple[Stage, Draft, tuple[Comparison, ...], GlyphsTools]]:
    """(stage, draft, comparisons, tools) of a recipe on a caption row."""

    def go(
        name: str, stage: int = 0, tools: dict[str, Any] | None = None, **params: Any
    ) -> tuple[Stage, Draft, tuple[Comparison, ...], GlyphsTools]:
        used = glyphs_tools(**(tools or {}))
        built = load(name, params).stages[stage]
        done, made = _run(built, glyphs_draft(), used)
        return built, done, made, used

    return go
