"""Rewards: rules of the embedded world, a control, and people's own functions."""

from __future__ import annotations

from pipelines.rewards.base import Reward, judge
from pipelines.rewards.load import load_reward

__all__ = ["Reward", "judge", "load_reward"]
