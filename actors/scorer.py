"""A scorer: runs the group program of one lease and delivers the group to the ledger.

It materialises the prompt, asks a generator for answers, judges them, lets the recipe choose and damage, and
builds the comparisons. A plain class: its partners are handles of actors or objects of this process.
"""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

from actors.producer import named, reach
from pipelines.data.base import BadRow, Source
from pipelines.loop import Parcel, RoleFailed
from pipelines.perturbations.base import DamageRequest
from pipelines.recipe import Stage
from pipelines.rewards import load_reward
from pipelines.rewards.base import Reward, judge
from pipelines.rollout import Draft, Drop, derived_seed
from pipelines.schedules import meaning, semantic_entropy
from pipelines.settings import Settings
from pipelines.types import (
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


async def judged(reward: Reward, prompt: Prompt, response: Response) -> Score:
    """The reward's score. Rewards keep their own deadlines; one that breaks its promise and raises, or
    returns something else, gives a *missing* score."""
    try:
        verdict = await judge(reward, prompt, response)
    except Exception as error:
        return Score(value=None, missing=f"{type(error).__name__}: {error}")
    if isinstance(verdict, Score):
        return verdict
    return Score(value=None, missing=f"the reward returned {type(verdict).__name__}, not a Score")


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
    """The tools of one group's program; keeps what it saw for the group's facts."""

    def __init__(self, generator: Any, pool: Pool, reward: Reward) -> None:
        self._generator, self._pool, self._reward = generator, pool, reward
        self.rollouts: list[Rollout] = []
        self.scores: list[Score] = []
        self.damaged: list[Media] = []
        self.seconds: dict[str, float] = defaultdict(float)

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[Rollout]:
        asked = self._generator.sample(prompt, media, n, seed)
        rollouts = await self._timed("sample", "generator", asked)
        self.rollouts.extend(rollouts)
        return rollouts

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        verdicts = asyncio.gather(*(judged(self._reward, r.prompt, r.response) for r in rollouts))
        scores = await self._timed("score", "scorer", verdicts)
        self.scores.extend(scores)
        return scores

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        damaged = await self._timed("damage", "perturber", self._pool.damage(media, request))
        self.damaged.append(damaged)
        return damaged

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
        reward: in place of the one that the settings name.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        source: Source,
        generators: Sequence[Any],
        perturbers: Sequence[Any],
        ledger: Any,
        reward: Reward | None = None,
    ) -> None:
        timeout_s = settings.rollout.engine.timeout_s
        self._stage, self._source = stage, source
        # A request may wait at the gate while a sync, which has the same deadline, is under way.
        self._generators = [reach(generator, "generator", 3 * timeout_s) for generator in generators]
        self._pool = Pool([reach(perturber, "perturber", timeout_s) for perturber in perturbers])
        self._ledger = reach(ledger, "ledger", timeout_s)
        self._reward = reward or load_reward(settings)

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        """Carry out a lease up to the ledger's receipt. Never raises: what fails is named in a `Fault`."""
        try:
            group, cause = await self._group(lease, parcel)
            return await self._ledger.accept(group, cause)
        except Exception as error:
            role = "data" if isinstance(error, BadRow) else "scorer"
            return named(error, role).fault(lease.group)

    async def survey(self, parcel: Parcel, n: int, seed: int, generator: int) -> float:
        """Difficulty of a prompt: semantic entropy (nats) over n answers. Tries other generators on failure.

        Raises:
            RoleFailed: no generator could answer.
        """
        prompt, media = await self._prompt(parcel)
        failures: list[str] = []
        for attempt in range(SURVEY_TRIES):
            chosen = self._generators[(generator + attempt) % len(self._generators)]
            try:
                rollouts = await chosen.sample(prompt, media, n, derived_seed(seed, attempt))
            except Exception as error:
                failures.append(str(RoleFailed.of(error, "generator")))
                continue
            return semantic_entropy([meaning(rollout.response.text) for rollout in rollouts])
        raise RoleFailed("survey_failed", "generator", f"prompt {prompt.id!r}: {' | '.join(failures)}")

    async def _prompt(self, parcel: Parcel) -> tuple[Prompt, dict[str, Media]]:
        [item] = parcel
        position, raw = await item if inspect.isawaitable(item) else item
        return await asyncio.to_thread(lambda: self._source.prompt(self._source.row(raw, position)))

    async def _group(self, lease: Lease, parcel: Parcel) -> tuple[Group, str]:
        """The group, and the cause when it is dropped."""
        began = time.perf_counter()
        prompt, media = await self._prompt(parcel)
        tools = GroupTools(self._generators[lease.generator], self._pool, self._reward)
        tools.seconds["prompt"] = time.perf_counter() - began
        comparisons: tuple[Comparison, ...] = ()
        table: dict[str, Media] = {}
        reason, cause = None, ""
        try:
            draft = await self._stage.rollout(Draft(prompts={"x": prompt}, media=media), tools, lease.seed)
            comparisons = self._stage.compare(lease.group, draft)
            check_versions(comparisons)
            shown = {digest for c in comparisons for p in c.prompts for digest in p.media}
            table = {digest: draft.media[digest] for digest in shown}
        except Drop as drop:
            comparisons, reason = (), drop.reason
            cause = next((score.missing for score in tools.scores if score.missing), "")
        versions = [rollout.behaviour.oldest for rollout in tools.rollouts if rollout.behaviour is not None]
        group = Group(
            id=lease.group,
            fence=lease.fence,
            comparisons=comparisons,
            media=table,
            version=min(versions, default=0),
            dropped=reason,
            facts=facts_of(tools.rollouts, tools.scores, tools.damaged),
            seconds={f"rollout/{stage}": seconds for stage, seconds in tools.seconds.items()},
        )
        return group, cause


def check_versions(comparisons: Iterable[Comparison]) -> None:
    """Both policy responses of an edge come from one weight version; drops the group otherwise."""
    for comparison in comparisons:
        for edge in comparison.preferences:
            sides = (comparison.candidates[edge.winner], comparison.candidates[edge.loser])
            behaviours = [side.behaviour for side in sides if side.behaviour is not None]
            if len({version for b in behaviours for version in (b.oldest, b.newest)}) > 1:
                raise Drop("mixed_versions")


def facts_of(
    rollouts: Sequence[Rollout], scores: Sequence[Score], damaged: Sequence[Media]
) -> dict[str, float]:
    """Numbers to log of one group; a number that nothing tells of is absent.

    reward, reward_best, reward_worst: over the answers that have a score; missing: share of those that have
    none; hallucination: wrong / (right + wrong) mentions over all answers; sampled_tokens; finished: share of
    answers that ended by themselves; fallback: share of damaged media without a region.
    """
    facts: dict[str, float] = {}
    values = [score.value for score in scores if score.value is not None]
    if values:
        facts |= {
            "reward": statistics.fmean(values),
            "reward_best": max(values),
            "reward_worst": min(values),
        }
    if scores:
        facts["missing"] = 1 - len(values) / len(scores)
    right = sum(score.parts.get("right", 0.0) for score in scores)
    wrong = sum(score.parts.get("wrong", 0.0) for score in scores)
    if right + wrong > 0:
        facts["hallucination"] = wrong / (right + wrong)
    if rollouts:
        facts["sampled_tokens"] = sum(len(rollout.response.tokens) for rollout in rollouts)
        facts["finished"] = statistics.fmean(rollout.response.finished for rollout in rollouts)
    if damaged:
        facts["fallback"] = statistics.fmean(_fell_back(media) for media in damaged)
    return facts


def _fell_back(media: Media) -> bool:
    """Whether a selector found nothing, so that the whole media was damaged."""
    return media.op is not None and bool(media.op.params.get("fallback", False))
