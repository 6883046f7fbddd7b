"""What a reward is: a judgement of answers, one by one or of all answers to a prompt at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from pipelines.rewards.clock import at
from pipelines.types import MediaTable, Prompt, Response, Rollout, Score


class Reward(Protocol):
    """Scores a response to the prompt it was sampled under; what cannot be scored is *missing*, never 0.

    A reward never raises because of what it judges.
    """

    def __call__(self, prompt: Prompt, response: Response) -> Score | Awaitable[Score]: ...


class MediaReward(Protocol):
    """A reward that looks at the media; told from `Reward` by its third positional parameter."""

    def __call__(self, prompt: Prompt, response: Response, media: MediaTable) -> Score | Awaitable[Score]: ...


@runtime_checkable
class GroupReward(Protocol):
    """A reward that needs all answers of a group (duels, votes, standardisation) or scores them in a batch.

    One score per rollout, in order. Every combinator is one.
    """

    def group(
        self, rollouts: Sequence[Rollout], media: MediaTable
    ) -> Sequence[Score] | Awaitable[Sequence[Score]]: ...


AnyReward: TypeAlias = Reward | MediaReward | GroupReward


async def judge_group(
    reward: AnyReward, rollouts: Sequence[Rollout], media: MediaTable, step: int = 1
) -> tuple[Score, ...]:
    """One score per rollout, in order, from a reward of any kind.

    `step`: the learner step that the group was issued for; hyperparameters that are a `Clock` take their
    value there. Never raises: what fails, or returns anything but scores, is *missing* with the reason.
    """
    reward = at(reward, step)
    if isinstance(reward, GroupReward):
        return await _whole(reward, rollouts, media)
    return tuple(await asyncio.gather(*(_single(reward, rollout, media) for rollout in rollouts)))


def is_reward(value: Any) -> bool:
    """Whether an object can judge: it has `group`, or can be called with a prompt and a response."""
    if isinstance(value, type) or not (isinstance(value, GroupReward) or callable(value)):
        return False
    return isinstance(value, GroupReward) or _accepts(value, 2) or _accepts(value, 3)


def missing(reason: str) -> Score:
    return Score(value=None, missing=reason)


async def _whole(reward: GroupReward, rollouts: Sequence[Rollout], media: MediaTable) -> tuple[Score, ...]:
    try:
        given = reward.group(rollouts, media)
        scores = tuple(await given if inspect.isawaitable(given) else given)
    except Exception as error:
        return (missing(_raised(error)),) * len(rollouts)
    if len(scores) != len(rollouts):
        return (missing(f"reward_returned: {len(scores)} scores for {len(rollouts)} responses"),) * len(
            rollouts
        )
    return tuple(_checked(score) for score in scores)


async def _single(reward: Reward | MediaReward, rollout: Rollout, media: MediaTable) -> Score:
    try:
        if _accepts(reward, 3):
            verdict = cast("MediaReward", reward)(rollout.prompt, rollout.response, media)
        else:
            verdict = cast("Reward", reward)(rollout.prompt, rollout.response)
        return _checked(await verdict if inspect.isawaitable(verdict) else verdict)
    except Exception as error:
        return missing(_raised(error))


def _accepts(function: Any, positional: int) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return positional == 2
    try:
        signature.bind(*range(positional))
    except TypeError:
        return False
    return True


def _checked(verdict: Any) -> Score:
    if isinstance(verdict, Score):
        return verdict
    return missing(f"reward_returned: {type(verdict).__name__}, expected a Score")


def _raised(error: BaseException) -> str:
    return f"reward_raised: {type(error).__name__}: {error}"[:300]
