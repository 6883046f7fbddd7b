"""From a setting to the reward that it names."""

from __future__ import annotations

from pipelines.rewards.base import Reward
from pipelines.rewards.random import Random
from pipelines.rewards.user import RewardNotFound, User, find
from pipelines.rewards.world import World
from pipelines.settings import Settings
from pipelines.settings_errors import SettingsError


def load_reward(settings: Settings) -> Reward:
    """The reward of a run. Raises SettingsError when it cannot be imported or has the wrong signature."""
    match settings.reward:
        case "world":
            return World()
        case "random":
            return Random(settings.seed)
        case name:
            try:
                return User(find(name), settings.rollout.reward_timeout_s)
            except RewardNotFound as error:
                raise SettingsError(str(error)) from error
