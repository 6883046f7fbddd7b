"""A scorer: runs the group program of one lease and delivers the group to the ledger.

It materialises the prompt, asks a generator for answers, judges them, lets the recipe choose and damage, and
builds the comparisons. A plain class: its partners are handles of actors or objects of this process.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from actors.group_facts import facts_of
from actors.producer import named, reach
from pipelines.data.base import BadRow, Source
from pipelines.decoding import AGELESS, Decoder
from pipelines.editors import Editor, load_editor
from pipelines.loop import Parcel, RoleFailed
from pipelines.perturbations.base import DamageRequest
from pipelines.recipe import Recipe
from pipelines.rewards import load_reward
from pipelines.rewards.base import AnyReward, judge_group
from pipelines.rollout import Draft, Drop, Probe, derived_seed
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
SURVEY_TRIES = 3
LATELY = 64  # answers of other prompts that `foreign` chooses from


class Pool:
    """Perturbers; each call goes to the one with the fewest calls under way."""

    def __init__(self, perturbers: Sequence[Any]) -> None:
        self._perturbers = list(perturbers)
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

    `step`: the learner step that the group is for; `lately`: answers to earlier prompts, newest last.
    """

    def __init__(
        self,
        generator: Any,
        pool: Pool,
        reward: AnyReward,
        editor: Editor,
        step: int = 1,
        lately: Sequence[Rollout] = (),
    ) -> None:
        self._generator, self._pool, self._reward, self._editor = generator, pool, reward, editor
        self._step, self._lately = step, lately
        self.rollouts: list[Rollout] = []
        self.scores: list[Score] = []
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


class Scorer:
    """One scorer, for any number of leases at a time.

    Args:
        generators: in the order of `Lease.generator`.
        ledger: where groups are delivered.
        reward, editor: in place of those that the settings name.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        source: Source,
        generators: Sequence[Any],
        perturbers: Sequence[Any],
        ledger: Any,
        reward: AnyReward | None = None,
        editor: Editor | None = None,
    ) -> None:
        timeout_s = settings.rollout.engine.timeout_s
        self._recipe, self._source = recipe, source
        # A request may wait at the gate while a sync, which has the same deadline, is under way.
        self._generators = [reach(generator, "generator", 3 * timeout_s) for generator in generators]
        self._pool = Pool([reach(perturber, "perturber", timeout_s) for perturber in perturbers])
        self._ledger = reach(ledger, "ledger", timeout_s)
        self._reward = reward or load_reward(settings)
        self._editor = editor or load_editor(settings)
        self._lately: deque[Rollout] = deque(maxlen=LATELY)

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        """Carry out a lease up to the ledger's receipt. Never raises: what fails is named in a `Fault`."""
        try:
            group, cause = await self._group(lease, parcel)
            return await self._ledger.accept(group, cause)
        except Exception as error:
            role = "data" if isinstance(error, BadRow) else "scorer"
            return named(error, role).fault(lease.group)

    async def survey(self, parcel: Parcel, order: Order, seed: int, generator: int) -> float:
        """Difficulty of a prompt by the order's key. Tries other generators on failure.

        Raises:
            RoleFailed: it could not be found.
        """
        prompt, media = await self._prompt(parcel)
        failures: list[str] = []
        for attempt in range(SURVEY_TRIES):
            chosen = self._generators[(generator + attempt) % len(self._generators)]
            tools = self._tools(chosen, Lease(group=prompt.id, fence=0, cursor=0, seed=seed, generator=0))
            try:
                return await difficulty_of(order, prompt, media, tools, derived_seed(seed, attempt))
            except Exception as error:
                failures.append(str(RoleFailed.of(error, "generator")))
        raise RoleFailed("survey_failed", "generator", f"prompt {prompt.id!r}: {' | '.join(failures)}")

    def _tools(self, generator: Any, lease: Lease, prompt_id: str | None = None) -> GroupTools:
        lately = [rollout for rollout in self._lately if rollout.prompt.id != prompt_id]
        return GroupTools(generator, self._pool, self._reward, self._editor, lease.step, lately)

    async def _prompt(self, parcel: Parcel) -> tuple[Prompt, dict[str, Media]]:
        [item] = parcel
        position, raw = await item if inspect.isawaitable(item) else item
        return await asyncio.to_thread(lambda: self._source.prompt(self._source.row(raw, position)))

    async def _group(self, lease: Lease, parcel: Parcel) -> tuple[Group, str]:
        """The group, and the cause when it is dropped."""
        began = time.perf_counter()
        prompt, media = await self._prompt(parcel)
        tools = self._tools(self._generators[lease.generator], lease, prompt.id)
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
            check_versions(comparisons)
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
            facts=facts | facts_of(tools.rollouts, tools.scores, tools.damaged),
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


def check_versions(comparisons: Iterable[Comparison]) -> None:
    """Two different answers of the policy that share an edge come from one weight version; drops the group
    otherwise. Gold and offline answers, and those of other streams, are exempt."""
    for comparison in comparisons:
        for edge in comparison.preferences:
            sides = (comparison.candidates[edge.winner], comparison.candidates[edge.loser])
            if sides[0].response == sides[1].response:
                continue
            behaviours = [side.behaviour for side in sides if side.behaviour is not None]
            drawn = [b for b in behaviours if b.stream == "policy"]
            if len({version for b in drawn for version in (b.oldest, b.newest)}) > 1:
                raise Drop("mixed_versions")
