"""From a setting to the reward that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.rewards.base import AnyReward, judge_group, missing
from pipelines.rewards.random import Random
from pipelines.rewards.user import RewardNotFound, User, build, builds, find
from pipelines.rewards.world import World
from pipelines.settings import Settings
from pipelines.settings_errors import SettingsError
from pipelines.types import MediaTable, Rollout, Score


@dataclass(frozen=True)
class Deadline:
    """A reward whose group is missing when it does not answer in time."""

    reward: AnyReward
    timeout_s: float

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await judge_group(self.reward, rollouts, media)
        except TimeoutError:
            late = missing(f"reward_timed_out: no answer after {self.timeout_s:g} s")
            return [late] * len(rollouts)


def load_reward(settings: Settings) -> AnyReward:
    """The reward of a run. Raises SettingsError when it cannot be imported or has the wrong signature.

    "module:function" is told apart by its signature: one that takes (prompt, response, row) is the reward
    itself; one without arguments is called once, here, and returns a reward object: a composition, a judge, a
    model. Validation builds it as well, so what is heavy is loaded when it first judges.
    """
    match settings.reward:
        case "world":
            return World()
        case "random":
            return Random(settings.seed)
        case name:
            timeout_s = settings.rollout.reward_timeout_s
            try:
                function = find(name)
                if builds(function):
                    return Deadline(build(name, function), timeout_s)
                return User(function, timeout_s)
            except RewardNotFound as error:
                raise SettingsError(str(error)) from error
