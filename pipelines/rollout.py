"""Group programs: from one prompt to the scored, chosen and damaged material of its comparisons.

A program is an async callable `(draft, tools, seed) -> draft`. Steps are joined by `>>`; the default pipe is

    Sample(8) >> Choose() >> Damage(...)

Tools hide where the work runs: in one process (tests, notebooks) or in Ray actors. A step that finds
nothing to learn from raises `Drop` with a short, countable reason. The steps are in `pipelines/programs/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipelines.decoding import Ability, Decoder
from pipelines.perturbations.base import DamageRequest
from pipelines.types import Media, MediaTable, Prompt, Response, Rollout, Score


class Drop(Exception):
    """A group that yields no comparison, with a countable reason ("tie", "missing_score")."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the policy says of an answer that it is made to read (teacher-forced); for selection, never for a
    loss."""

    logps: tuple[float, ...]  # [length] log-probability of each token, nats
    top: tuple[int, ...]  # [length] the most likely token at each position, given the answer's beginning
    attention: tuple[float, ...] = ()  # share of the attention mass on each media of the prompt, if asked for
    version: int = 0  # weight version


class Tools(Protocol):
    """What a program may ask for; every wait inside has a deadline."""

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
        """n responses, all of one weight version, decoded as `decoder` or the run's settings say.

        With a `prefix`, tokens of an answer's beginning, each response is that beginning and its continuation
        (origin "stitched").
        """
        ...

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> Sequence[Probe]:
        """The policy's log-probabilities of given responses, in order."""
        ...

    async def score(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        """One score per rollout, in order; a reward that fails gives a *missing* score."""
        ...

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        """The media with its regions damaged; whole image when the selector finds none."""
        ...

    async def encode(self, text: str, origin: str) -> Response:
        """An answer given as text, in the policy's tokens, with the end of sequence."""
        ...

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without special tokens."""
        ...

    async def edit(self, rollout: Rollout, kind: str, seed: int, media: MediaTable) -> str:
        """The answer as the run's editor rewrites it; `kind` says how: "correct", "inject", "refine"..."""
        ...

    async def foreign(self) -> Rollout | None:
        """An answer to another prompt that was sampled lately; None when there was none yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The material of one group while its program runs."""

    prompts: Mapping[str, Prompt]  # "x": the clean prompt; further names are added by steps
    media: MediaTable
    rollouts: tuple[Rollout, ...] = ()
    scores: tuple[Score | None, ...] = ()  # of each rollout; None: it was not judged
    chosen: Mapping[str, int] = field(default_factory=dict[str, int])  # "w", "l" -> index into rollouts
    sets: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict[str, tuple[int, ...]]
    )  # "y" -> indices: several rollouts under one name
    facts: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # numbers of steps, for compare and logs

    @property
    def prompt(self) -> Prompt:
        return self.prompts["x"]

    def rollout(self, name: str) -> Rollout:
        """The rollout of that name. Raises ValueError when no earlier step chose it."""
        if name not in self.chosen:
            raise ValueError(
                f"no earlier step made the response {name!r}; there are {sorted(self.chosen)} (programs run "
                "from left to right)"
            )
        return self.rollouts[self.chosen[name]]

    def at(self, name: str) -> Prompt:
        """The prompt of that name. Raises ValueError when no earlier step made it."""
        if name not in self.prompts:
            raise ValueError(f"no earlier step made the prompt {name!r}; there are {sorted(self.prompts)}")
        return self.prompts[name]

    def members(self, name: str) -> tuple[int, ...]:
        """Indices of the rollouts of a set, or of the one rollout of that name."""
        if name in self.sets:
            return self.sets[name]
        self.rollout(name)
        return (self.chosen[name],)

    def with_rollouts(
        self, name: str, rollouts: Sequence[Rollout], scores: Sequence[Score | None] | None = None
    ) -> Draft:
        """Adds rollouts as the set `name`, and as the chosen response `name` when there is exactly one."""
        first = len(self.rollouts)
        indices = tuple(range(first, first + len(rollouts)))
        chosen = {**self.chosen, name: first} if len(rollouts) == 1 else self.chosen
        judged = tuple(scores) if scores is not None else (None,) * len(rollouts)
        return replace(
            self,
            rollouts=(*self.rollouts, *rollouts),
            scores=(*self.scores, *judged),
            sets={**self.sets, name: indices},
            chosen=chosen,
        )

    def with_prompt(self, name: str, prompt: Prompt, media: MediaTable | None = None) -> Draft:
        """Adds a prompt, and the media that it shows."""
        return replace(self, prompts={**self.prompts, name: prompt}, media={**self.media, **(media or {})})


class Step:
    """One step of a program."""

    @property
    def makes(self) -> frozenset[str]:
        """Names of the responses and prompts that it makes; checked against `compare` before a run."""
        return frozenset()

    @property
    def needs(self) -> frozenset[Ability]:
        """Abilities of the engine that it uses."""
        return frozenset()

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        raise TypeError(f"{type(self).__name__} does not define what it does")

    def __rshift__(self, other: Step) -> Pipe:
        return Pipe((self, other))


@dataclass(frozen=True)
class Pipe(Step):
    """Steps in a row, each with its own seed."""

    steps: tuple[Step, ...]

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({"x"}).union(*(step.makes for step in self.steps))

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset(need for step in self.steps for need in step.needs)

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        for position, step in enumerate(self.steps):
            draft = await step(draft, tools, derived_seed(seed, position))
        return draft

    def __rshift__(self, other: Step) -> Pipe:
        return Pipe((*self.steps, other))


def derived_seed(seed: int, *path: int | str) -> int:
    """A 31-bit seed for a part of some work, independent of the order in which parts run."""
    text = "/".join(str(item) for item in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
