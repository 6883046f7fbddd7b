"""Rewards: rules, models, judges, remote servers, people's own functions, and what combines them."""

from __future__ import annotations

from pipelines.rewards.base import AnyReward, GroupReward, MediaReward, Reward, judge_group
from pipelines.rewards.load import load_reward

__all__ = ["AnyReward", "GroupReward", "MediaReward", "Reward", "judge_group", "load_reward"]
