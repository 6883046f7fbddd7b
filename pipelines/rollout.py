"""Group programs: from one prompt to the scored, chosen and damaged material of one comparison.

A program is an async callable `(draft, tools, seed) -> draft`. Steps are joined by `>>`; the default pipe is

    Sample(8) >> Choose() >> Damage(...)

Tools hide where the work runs: in one process (tests, notebooks) or in Ray actors. A step that finds
nothing to learn from raises `Drop` with a short, countable reason.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipelines.perturbations.base import DamageRequest, Perturbation, RegionSelector
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

    async def damage(self, media: Media, request: DamageRequest) -> Media:
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

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Sample(n=...): expected at least 1 response, got {self.n}")

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollouts = tuple(await tools.sample(draft.prompt, draft.media, self.n, seed))
        scores = tuple(await tools.score(rollouts))
        if len(scores) != len(rollouts):
            raise ValueError(f"the scorer gave {len(scores)} scores for {len(rollouts)} responses")
        return replace(draft, rollouts=rollouts, scores=scores)


@dataclass(frozen=True)
class Choose(Step):
    """Best against worst by score: "w" and "l". Missing scores never take part; ties drop the group.

    Among equal scores the earlier response is taken, on both ends.
    """

    min_gap: float = 0.0  # the scores must differ by more than this

    def __post_init__(self) -> None:
        if not self.min_gap >= 0:
            raise ValueError(f"Choose(min_gap=...): expected at least 0, got {self.min_gap}")

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = {i: s.value for i, s in enumerate(draft.scores) if s.value is not None}
        if len(values) < 2:
            raise Drop("too_few_responses" if len(draft.scores) < 2 else "missing_score")
        best = max(values, key=lambda i: values[i])
        worst = min(values, key=lambda i: values[i])
        if values[best] - values[worst] <= self.min_gap:
            raise Drop("tie")
        return replace(draft, chosen={"w": best, "l": worst})


def best_and_worst(samples: int, min_gap: float = 0.0) -> Pipe:
    """The usual start of a program. Raises ValueError for fewer than 2 samples: they could never differ."""
    if samples < 2:
        raise ValueError(
            f"samples: expected at least 2, since the best is compared with the worst, got {samples}"
        )
    return Sample(samples) >> Choose(min_gap)


@dataclass(frozen=True)
class Damage(Step):
    """Adds a prompt with damaged media under a name.

    `of` names the chosen response from which a selector takes its regions, so a step with a selector follows
    choosing. `optional`: a prompt without media, or one that the damage left as it was, goes on without the
    damaged prompt instead of being dropped; for damage that is only watched.
    """

    name: str
    perturbation: Perturbation
    selector: RegionSelector | None = None
    of: str = "w"
    optional: bool = False

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        digests = tuple(dict.fromkeys(draft.prompt.media))
        if not digests:
            return self._without(draft, "no_media_to_damage")
        if self.selector is not None and self.of not in draft.chosen:
            raise ValueError(f"Damage({self.name!r}) reads {self.of!r}, which no earlier step chose")
        answer = draft.rollouts[draft.chosen[self.of]].response.text if self.of in draft.chosen else ""
        asked = DamageRequest(
            perturbation=self.perturbation,
            selector=self.selector,
            answer=answer,
            gold=draft.prompt.gold,
            seed=0,
        )
        work = (
            tools.damage(draft.media[digest], replace(asked, seed=derived_seed(seed, i)))
            for i, digest in enumerate(digests)
        )
        damaged = await asyncio.gather(*work)
        swap = {old: new.digest for old, new in zip(digests, damaged, strict=True)}
        if all(old == new for old, new in swap.items()):
            return self._without(draft, "damage_changed_nothing")
        table = {**draft.media, **{media.digest: media for media in damaged}}
        prompt = draft.prompt.with_media(swap, origin=self.name)
        return replace(draft, prompts={**draft.prompts, self.name: prompt}, media=table)

    def _without(self, draft: Draft, reason: str) -> Draft:
        if self.optional:
            return draft
        raise Drop(reason)


def derived_seed(seed: int, *path: int | str) -> int:
    """A 31-bit seed for a part of some work, independent of the order in which parts run."""
    text = "/".join(str(item) for item in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
