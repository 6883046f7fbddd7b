"""Programs of several turns: a closer look at a region, and an agent that acts step by step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from pipelines.perturbations.base import DamageRequest, Mask, RegionSelector, picture_of, recorded, scaled
from pipelines.programs.sampling import rescored
from pipelines.rollout import Draft, Drop, Step, Tools, derived_seed
from pipelines.types import Media, MediaTable, Message, Part, Prompt, Rollout, Score


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What an action led to: what the model is shown next, and for the reward a text."""

    prompt: Prompt
    media: MediaTable = field(default_factory=dict[str, Media])
    text: str = ""


class Environment(Protocol):
    """Carries out what an answer asks for (a crop, a search, code in a sandbox of its own). It never raises
    because of what the model wrote: a failed action is an observation that says so."""

    async def __call__(self, rollout: Rollout, media: MediaTable, tools: Tools, seed: int) -> Observation: ...


@dataclass(frozen=True)
class Zoom:
    """The bounding box of the mask, scaled to the size of the picture; without a mask the picture itself."""

    @property
    def strength(self) -> float:
        return 0.0

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        picture = picture_of(media, "zoom")
        rows, columns = np.nonzero(np.ones(picture.shape[:2]) if mask is None else mask)
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        crop = scaled(picture[y0:y1, x0:x1], picture.shape[1], picture.shape[0])
        op = recorded(self, seed, box=[int(x0), int(y0), int(x1), int(y1)])
        return Media(kind=media.kind, space=media.space, payload=crop, parent=media.digest, op=op)


@dataclass(frozen=True)
class Closer:
    """An environment: shows the region that the answer speaks of, enlarged, and asks again."""

    locate: RegionSelector
    say: str = "look here ."

    async def __call__(self, rollout: Rollout, media: MediaTable, tools: Tools, seed: int) -> Observation:
        prompt, answer = rollout.prompt, rollout.response.text
        picture = media[prompt.media[0]]
        asked = DamageRequest(
            perturbation=Zoom(), selector=self.locate, answer=answer, gold=prompt.gold, seed=seed
        )
        crop = await tools.damage(picture, asked)
        turn = (Part(kind=crop.kind, digest=crop.digest), Part(kind="text", text=self.say))
        messages = (
            *prompt.messages,
            Message(role="assistant", parts=(Part(kind="text", text=answer),)),
            Message(role="user", parts=turn),
        )
        return Observation(
            prompt=replace(prompt, messages=messages, origin="closer"),
            media={crop.digest: crop},
            text=f"crop {crop.op.params if crop.op is not None else None}",
        )


@dataclass(frozen=True)
class Look(Step):
    """Scores answers together with what they lead to: s + gamma * s_next; parts "current" and "next".

    UV-CoT (code read): the next answer is sampled after the environment has shown the region. Where either
    score is missing, so is the sum.
    """

    of: str
    environment: Environment
    gamma: float = 0.5

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if not draft.prompt.media:
            raise Drop("no_media_to_damage")
        scores = {i: self._ahead(draft, i, tools, derived_seed(seed, i)) for i in draft.members(self.of)}
        return rescored(draft, dict(zip(scores, await asyncio.gather(*scores.values()), strict=True)))

    async def _ahead(self, draft: Draft, index: int, tools: Tools, seed: int) -> Score:
        current = draft.scores[index]
        if current is None or current.value is None:
            return current or Score(value=None, missing="not_judged")
        seen = await self.environment(draft.rollouts[index], draft.media, tools, seed)
        media = {**draft.media, **seen.media}
        rollouts = await tools.sample(seen.prompt, media, 1, seed)
        (following,) = await tools.score(rollouts, media)
        if following.value is None:
            return following
        parts = {**current.parts, "current": current.value, "next": following.value}
        return replace(current, value=current.value + self.gamma * following.value, parts=parts)


@dataclass(frozen=True)
class Agent(Step):
    """A trajectory of steps, each the best of `beam` actions after their results are known.

    SPORT (arXiv 2504.21561; released code read). Step t has the prompt "s/<t>", its actions are the set
    "y/<t>" and the best one is "w/<t>"; the reward sees what an action led to as the column `observation`.
    Read by `comparing.several.PerStep`. A step whose actions score alike goes on with the first one.
    """

    environment: Environment
    beam: int = 3
    steps: int = 2

    def __post_init__(self) -> None:
        if self.beam < 2 or self.steps < 1:
            raise ValueError(f"Agent: expected beam >= 2 and steps >= 1, got {self.beam} and {self.steps}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset(f"{kind}/{t}" for kind in "syw" for t in range(self.steps))

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if not draft.prompt.media:
            raise Drop("no_media_to_damage")
        draft = draft.with_prompt("s/0", draft.prompt)
        for t in range(self.steps):
            draft, seen = await self._act(draft, t, tools, derived_seed(seed, t))
            if t + 1 < self.steps:
                draft = draft.with_prompt(f"s/{t + 1}", seen.prompt, seen.media)
        return draft

    async def _act(self, draft: Draft, t: int, tools: Tools, seed: int) -> tuple[Draft, Observation]:
        rollouts = await tools.sample(draft.at(f"s/{t}"), draft.media, self.beam, seed)
        work = (
            self.environment(r, draft.media, tools, derived_seed(seed, i)) for i, r in enumerate(rollouts)
        )
        seen = await asyncio.gather(*work)
        known = [
            replace(r, prompt=replace(r.prompt, gold={**r.prompt.gold, "observation": o.text}))
            for r, o in zip(rollouts, seen, strict=True)
        ]
        scores = await tools.score(known, draft.media)
        values = [-np.inf if score.value is None else score.value for score in scores]
        if not np.isfinite(values).any():
            raise Drop("missing_score")
        best = int(np.argmax(values))
        draft = draft.with_rollouts(f"y/{t}", rollouts, scores)
        chosen = {**draft.chosen, f"w/{t}": draft.sets[f"y/{t}"][best]}
        return replace(draft, chosen=chosen), seen[best]
