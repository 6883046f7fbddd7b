"""A fake of the tools that group programs run on, and prompts to run them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipelines.decoding import Decoder
from pipelines.perturbations.base import DamageRequest, damage
from pipelines.rollout import Draft, Probe
from pipelines.types import Behaviour, Media, MediaTable, Message, Part, Prompt, Response, Rollout, Score

ANSWERS = ("a red seven top left .", "a red seven top left and a blue one bottom right .")
GOLD = {
    "boxes": [
        {"box": [2, 3, 12, 20], "words": ["red", "seven", "top left"]},
        {"box": [31, 22, 56, 40], "words": ["blue", "one", "bottom right"]},
    ]
}


class Words:
    """A tokenizer of whole words; id 2 ends an answer."""

    END = 2

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._ids.setdefault(word, 10 + len(self._ids)) for word in text.split())

    def decode(self, tokens: Sequence[int]) -> str:
        words = {number: word for word, number in self._ids.items()}
        return " ".join(words[token] for token in tokens if token != self.END)

    def answer(self, text: str, origin: str = "sampled") -> Response:
        return Response(tokens=(*self.encode(text), self.END), text=" ".join(text.split()), origin=origin)

    def prefixed(self, prefix: Sequence[int], text: str) -> Response:
        tokens = (*prefix, *self.encode(text), self.END)
        return Response(tokens=tokens, text=self.decode(tokens), origin="stitched")


@dataclass
class FakeTools:
    """Gives prepared answers in turn and prepared scores; damages in place. Remembers what it was asked."""

    answers: Sequence[str] = ANSWERS
    scores: Sequence[float | None] = (1.0, 0.0)
    edits: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    logp: Callable[[Prompt, str], float] = lambda prompt, word: -1.0
    top: Callable[[Prompt, str], str] = lambda prompt, word: word
    attention: Sequence[float] = ()
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    other: Rollout | None = None
    words: Words = field(default_factory=Words)
    seeds: dict[str, list[int]] = field(default_factory=lambda: {"sample": [], "damage": []})
    asked: list[int] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)  # one per response, in order
    decoders: list[Decoder | None] = field(default_factory=list)
    prefixes: list[tuple[int, ...]] = field(default_factory=list)
    given: int = 0  # responses so far

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
        self.seeds["sample"].append(seed)
        self.asked.append(n)
        self.decoders.append(decoder)
        self.prefixes.append(tuple(prefix))
        return [self._rollout(prompt, prefix) for _ in range(n)]

    def _rollout(self, prompt: Prompt, prefix: Sequence[int]) -> Rollout:
        text = self.answers[self.given % len(self.answers)]
        self.given += 1
        self.prompts.append(prompt)
        response = self.words.prefixed(prefix, text) if prefix else self.words.answer(text)
        logps = tuple(-0.5 for _ in response.tokens)
        behaviour = Behaviour(stream="policy", decoder={"temperature": 1.0}, oldest=3, newest=3, logps=logps)
        return Rollout(prompt=prompt, response=response, behaviour=behaviour)

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> Sequence[Probe]:
        def read(response: Response) -> Probe:
            words = [self.words.decode([token]) for token in response.tokens]
            top = [self.words.encode(self.top(prompt, word))[0] if word else self.words.END for word in words]
            mass = tuple(self.attention) if attention else ()
            return Probe(logps=tuple(self.logp(prompt, w) for w in words), top=tuple(top), attention=mass)

        return [read(response) for response in responses]

    async def score(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        parts = [{name: values[i] for name, values in self.parts.items()} for i in range(len(self.scores))]
        return [
            Score(value=None, missing="no verdict") if value is None else Score(value=value, parts=also)
            for value, also in zip(self.scores, parts, strict=True)
        ]

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        self.seeds["damage"].append(request.seed)
        return damage(media, request)

    async def encode(self, text: str, origin: str) -> Response:
        return self.words.answer(text, origin)

    async def decode(self, tokens: Sequence[int]) -> str:
        return self.words.decode(tokens)

    async def edit(self, rollout: Rollout, kind: str, seed: int, media: MediaTable) -> str:
        return self.edits[kind](rollout.response.text)

    async def foreign(self) -> Rollout | None:
        return self.other


@pytest.fixture
def make_tools() -> Callable[..., FakeTools]:
    return FakeTools


@pytest.fixture
def make_draft() -> Callable[..., Draft]:
    """A draft whose prompt shows `images` random pictures, 40 high and 56 wide."""

    def build(images: int = 1) -> Draft:
        rng = np.random.default_rng(11)
        pictures = [
            Media(kind="image", space="rgb8", payload=rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
            for _ in range(images)
        ]
        parts = (*(Part(kind="image", digest=m.digest) for m in pictures), Part(kind="text", text="describe"))
        prompt = Prompt(id="row-0", messages=(Message(role="user", parts=parts),), gold=GOLD)
        return Draft(prompts={"x": prompt}, media={m.digest: m for m in pictures})

    return build
