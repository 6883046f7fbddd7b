"""A scorer: runs the group program of one lease and delivers the group to the ledger.

It materialises the prompt, asks a generator for answers, judges them, lets the recipe choose and damage, and
builds the comparisons. A plain class. Each lease says with whom it is carried out (`actors.partners`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from actors.group_facts import facts_of
from actors.partners import Partners
from actors.prompts import opened
from actors.remote import named
from pipelines.data.base import BadRow, Source
from pipelines.decoding import AGELESS, Decoder
from pipelines.editors import Editor, load_editor
from pipelines.loop import Parcel, RoleFailed
from pipelines.perturbations.base import DamageRequest
from pipelines.recipe import Recipe
from pipelines.rewards import load_reward
from pipelines.rewards.base import AnyReward, judge_group
from pipelines.rollout import Draft, Drop, Probe
from pipelines.schedules import Order
from pipelines.settings import Settings
from pipelines.surveys import difficulty_of
from pipelines.types import (
    NEVER_STALE,
    Comparison,
    Fault,
    Group,
    Lease,
    Media,
    MediaTable,
    Prompt,
    Receipt,
    Response,
    Rollout,
    Score,
)

T = TypeVar("T")
LATELY = 64  # answers of other prompts that `foreign` chooses from


class Pool:
    """Perturbers of one group; each call goes to the one with the fewest of its calls under way."""

    def __init__(self, perturbers: Sequence[Any], first: int = 0) -> None:
        turn = first % len(perturbers) if perturbers else 0  # groups begin with different ones
        self._perturbers = [*perturbers[turn:], *perturbers[:turn]]
        self._load = [0] * len(self._perturbers)

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        if not self._perturbers:
            raise ValueError("the recipe damages media but the run has no perturbers")
        index = min(range(len(self._load)), key=lambda i: (self._load[i], i))
        self._load[index] += 1
        try:
            return await self._perturbers[index].damage(media, request)
        finally:
            self._load[index] -= 1


class GroupTools:
    """The tools of one group's program; keeps what it saw for the group's facts.

    `step`: the learner step that the group is for; `lately`: answers to earlier prompts, newest last;
    `moved`: called whenever a tool has ended.
    """

    def __init__(
        self,
        generator: Any,
        pool: Pool,
        reward: AnyReward,
        editor: Editor,
        step: int = 1,
        lately: Sequence[Rollout] = (),
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._generator, self._pool, self._reward, self._editor = generator, pool, reward, editor
        self._step, self._lately, self._moved = step, lately, moved
        self.rollouts: list[Rollout] = []
        self.scores: list[Score] = []
        self.lengths: list[int] = []  # tokens of the scored answers
        self.damaged: list[Media] = []
        self.seconds: dict[str, float] = defaultdict(float)

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
        asked = self._generator.sample(prompt, media, n, seed, decoder=decoder, prefix=tuple(prefix))
        rollouts = await self._timed("sample", "generator", asked)
        self.rollouts.extend(rollouts)
        return rollouts

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> Sequence[Probe]:
        asked = self._generator.probe(prompt, media, tuple(responses), attention=attention)
        return await self._timed("probe", "generator", asked)

    async def score(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        verdicts = judge_group(self._reward, rollouts, media, self._step)
        scores = await self._timed("score", "scorer", verdicts)
        self.scores.extend(scores)
        self.lengths.extend(len(rollout.response.tokens) for rollout in rollouts)
        return scores

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        damaged = await self._timed("damage", "perturber", self._pool.damage(media, request))
        self.damaged.append(damaged)
        return damaged

    async def encode(self, text: str, origin: str) -> Response:
        return await self._timed("encode", "generator", self._generator.encode(text, origin))

    async def decode(self, tokens: Sequence[int]) -> str:
        return await self._timed("encode", "generator", self._generator.decode(tuple(tokens)))

    async def edit(self, rollout: Rollout, kind: str, seed: int, media: MediaTable) -> str:
        asked = self._editor(rollout.response.text, kind, rollout.prompt.gold, seed)
        return await self._timed("edit", "scorer", asked)

    async def foreign(self) -> Rollout | None:
        return self._lately[-1] if self._lately else None

    async def _timed(self, stage: str, role: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await work
        except Exception as error:
            raise RoleFailed.of(error, role) from error
        finally:
            self.seconds[stage] += time.perf_counter() - began
            self._moved()


class Scorer:
    """One scorer, for any number of leases at a time.

    `reward`, `editor`: in place of those that the settings name.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        source: Source,
        reward: AnyReward | None = None,
        editor: Editor | None = None,
    ) -> None:
        self._recipe, self._source = recipe, source
        self._timeout_s = settings.rollout.engine.timeout_s
        self._mixed = settings.sync.in_flight == "keep"
        self._reward = reward or load_reward(settings)
        self._editor = editor or load_editor(settings)
        self._lately: deque[Rollout] = deque(maxlen=LATELY)
        self._leases = self._moves = 0  # under way; calls of tools that have ended

    async def produce(self, lease: Lease, parcel: Parcel, partners: Partners) -> Receipt | Fault:
        """Carry out a lease up to the ledger's receipt. Never raises: what fails is named in a `Fault`."""
        self._leases += 1
        try:
            reached = partners.within(self._timeout_s)
            group, cause = await self._group(lease, parcel, reached)
            return await reached.ledger.accept(group, cause)
        except Exception as error:
            role = "data" if isinstance(error, BadRow) else "scorer"
            return named(error, role).fault(lease.group)
        finally:
            self._leases -= 1

    async def health(self) -> dict[str, Any]:
        """Answers at any time, unless a reward blocks the whole process."""
        return {
            "pid": os.getpid(),
            "alive": True,
            "in_flight": self._leases,
            "progress": self._moves,
            "load": {"cpu_s": time.process_time()},
        }

    def _move(self) -> None:
        self._moves += 1

    async def survey(self, parcel: Parcel, order: Order, seed: int, partners: Partners) -> float:
        """Difficulty of a prompt by the order's key. Whoever asks tries another generator on failure.

        Raises:
            RoleFailed: it could not be found.
        """
        prompt, media = await self._prompt(parcel)
        lease = Lease(group=prompt.id, fence=0, cursor=0, seed=seed, generator=0)
        tools = self._tools(partners.within(self._timeout_s), lease)
        try:
            return await difficulty_of(order, prompt, media, tools, seed)
        except Exception as error:
            raise RoleFailed.of(error, "generator") from error

    @property
    def lately(self) -> tuple[Rollout, ...]:
        """Answers to earlier prompts that programs may draw on, newest last."""
        return tuple(self._lately)

    def remember(self, rollouts: Iterable[Rollout]) -> None:
        """Take such answers over, as of a scorer that is gone."""
        self._lately.extend(rollouts)

    def _tools(self, partners: Partners, lease: Lease, prompt_id: str | None = None) -> GroupTools:
        lately = [rollout for rollout in self._lately if rollout.prompt.id != prompt_id]
        pool = Pool(partners.perturbers, lease.fence)
        generator, judge = partners.generator, self._reward
        return GroupTools(generator, pool, judge, self._editor, lease.step, lately, self._move)

    async def _prompt(self, parcel: Parcel) -> tuple[Prompt, dict[str, Media]]:
        position, raw = await opened(parcel)
        return await asyncio.to_thread(lambda: self._source.prompt(self._source.row(raw, position)))

    async def _group(self, lease: Lease, parcel: Parcel, partners: Partners) -> tuple[Group, str]:
        """The group, and the cause when it is dropped."""
        began = time.perf_counter()
        prompt, media = await self._prompt(parcel)
        tools = self._tools(partners, lease, prompt.id)
        tools.seconds["prompt"] = time.perf_counter() - began
        comparisons: tuple[Comparison, ...] = ()
        table: dict[str, Media] = {}
        facts: dict[str, float] = {}
        reason, cause = None, ""
        stage = self._recipe.stages[lease.stage]
        try:
            draft = await stage.rollout(Draft(prompts={"x": prompt}, media=media), tools, lease.seed)
            comparisons = tuple(replace(c, stage=lease.stage) for c in stage.compare(lease.group, draft))
            check_sides(comparisons)
            check_versions(comparisons, self._mixed)
            shown = {digest for c in comparisons for p in c.prompts for digest in p.media}
            table = {digest: draft.media[digest] for digest in shown}
            facts = {f"program/{name}": value for name, value in draft.facts.items()}
        except Drop as drop:
            comparisons, reason = (), drop.reason
            cause = next((score.missing for score in tools.scores if score.missing), "")
        self._lately.extend([r for r in tools.rollouts if r.behaviour and r.behaviour.stream == "policy"][:1])
        group = Group(
            id=lease.group,
            fence=lease.fence,
            comparisons=comparisons,
            media=table,
            version=oldest_version(tools.rollouts),
            dropped=reason,
            facts=facts | facts_of(tools.rollouts, tools.scores, tools.damaged, tools.lengths),
            seconds={f"rollout/{name}": seconds for name, seconds in tools.seconds.items()},
        )
        return group, cause


def oldest_version(rollouts: Iterable[Rollout]) -> int:
    """Of what the policy took part in; samples of other models, gold and offline answers have no age."""
    behaviours = [r.behaviour for r in rollouts if r.behaviour is not None]
    return min((b.oldest for b in behaviours if b.stream not in AGELESS), default=NEVER_STALE)


def check_sides(comparisons: Iterable[Comparison]) -> None:
    """The two sides of an edge differ. Drops the group otherwise, as "same_response": a judge that is not
    exact may score the same answer twice, and differently."""
    for comparison in comparisons:
        for edge in comparison.preferences:
            sides = [comparison.candidates[side] for side in (edge.winner, edge.loser)]
            shown = [comparison.responses[side.response] for side in sides]
            same = len({(response.tokens, response.scored) for response in shown}) == 1
            if same and sides[0].prompt == sides[1].prompt:
                raise Drop("same_response")


def check_versions(comparisons: Iterable[Comparison], mixed: bool = False) -> None:
    """Two different answers of the policy that share an edge come from one weight version; drops the group
    otherwise. `mixed`: they were begun under one, and may have gone on under later ones. Gold and offline
    answers, and those of other streams, are exempt."""
    for comparison in comparisons:
        for edge in comparison.preferences:
            sides = (comparison.candidates[edge.winner], comparison.candidates[edge.loser])
            if sides[0].response == sides[1].response:
                continue
            behaviours = [side.behaviour for side in sides if side.behaviour is not None]
            drawn = [b for b in behaviours if b.stream == "policy"]
            versions = {version for b in drawn for version in (b.oldest, *([] if mixed else [b.newest]))}
            if len(versions) > 1:
                raise Drop("mixed_versions")
