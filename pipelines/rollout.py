"""Group programs: from one prompt to the scored, chosen and damaged material of one comparison.

A program is an async callable `(draft, tools, seed) -> draft`. Steps are joined by `>>`; the default pipe is

    Sample(8) >> Choose() >> Damage(...)

Tools hide where the work runs: in one process (tests, notebooks) or in Ray actors. A step that finds
nothing to learn from raises `Drop` with a short, countable reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipelines.perturbations.base import Perturbation, RegionSelector
from pipelines.types import Media, MediaTable, Prompt, Rollout, Score


class Drop(Exception):
    """A group that yields no comparison, with a countable reason ("tie", "missing_score")."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tools(Protocol):
    """What a program may ask for; every wait inside has a deadline."""

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[Rollout]:
        """n responses of the policy, all of one weight version, decoded as the run's settings say."""
        ...

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        """One score per rollout, in order; a reward that fails gives a *missing* score."""
        ...

    async def damage(
        self,
        media: Media,
        perturbation: Perturbation,
        selector: RegionSelector | None,
        answer: str,
        gold: Mapping[str, Any],
        seed: int,
    ) -> Media:
        """The media with its regions damaged; whole image when the selector finds none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The material of one group while its program runs."""

    prompts: Mapping[str, Prompt]  # "x": the clean prompt; further names are added by `Damage`
    media: MediaTable
    rollouts: tuple[Rollout, ...] = ()
    scores: tuple[Score, ...] = ()
    chosen: Mapping[str, int] = field(default_factory=dict[str, int])  # "w", "l" -> index into rollouts

    @property
    def prompt(self) -> Prompt:
        return self.prompts["x"]


class Step:
    """One step of a program."""

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        raise TypeError(f"{type(self).__name__} does not define what it does")

    def __rshift__(self, other: Step) -> Pipe:
        return Pipe((self, other))


@dataclass(frozen=True)
class Pipe(Step):
    """Steps in a row, each with its own seed."""

    steps: tuple[Step, ...]

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        for position, step in enumerate(self.steps):
            draft = await step(draft, tools, derived_seed(seed, position))
        return draft

    def __rshift__(self, other: Step) -> Pipe:
        return Pipe((*self.steps, other))


@dataclass(frozen=True)
class Sample(Step):
    """n responses to the clean prompt, scored."""

    n: int = 8

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollouts = tuple(await tools.sample(draft.prompt, draft.media, self.n, seed))
        scores = tuple(await tools.score(rollouts))
        return replace(draft, rollouts=rollouts, scores=scores)


@dataclass(frozen=True)
class Choose(Step):
    """Best against worst by score: "w" and "l". Missing scores never take part; ties drop the group."""

    min_gap: float = 0.0  # the scores must differ by more than this

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = {i: s.value for i, s in enumerate(draft.scores) if s.value is not None}
        if len(values) < 2:
            raise Drop("missing_score")
        best = max(values, key=lambda i: values[i])
        worst = min(values, key=lambda i: values[i])
        if values[best] - values[worst] <= self.min_gap:
            raise Drop("tie")
        return replace(draft, chosen={"w": best, "l": worst})


@dataclass(frozen=True)
class Damage(Step):
    """Adds a prompt with damaged media under a name.

    `of` names the chosen answer from which a selector takes its regions; damage therefore follows choosing.
    """

    name: str
    perturbation: Perturbation
    selector: RegionSelector | None = None
    of: str = "w"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if not draft.prompt.media:
            raise Drop("no_media_to_damage")
        answer = draft.rollouts[draft.chosen[self.of]].response.text
        table = dict(draft.media)
        swap: dict[str, str] = {}
        for position, digest in enumerate(dict.fromkeys(draft.prompt.media)):
            damaged = await tools.damage(
                draft.media[digest],
                self.perturbation,
                self.selector,
                answer,
                draft.prompt.gold,
                derived_seed(seed, position),
            )
            table[damaged.digest] = damaged
            swap[digest] = damaged.digest
        if all(old == new for old, new in swap.items()):
            raise Drop("damage_changed_nothing")
        prompt = draft.prompt.with_media(swap, origin=self.name)
        return replace(draft, prompts={**draft.prompts, self.name: prompt}, media=table)


def derived_seed(seed: int, *path: int | str) -> int:
    """A 31-bit seed for a part of some work, independent of the order in which parts run."""
    text = "/".join(str(item) for item in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
