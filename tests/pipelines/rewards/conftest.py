from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pipelines.rewards import judge_group
from pipelines.types import Message, Part, Prompt, Response, Rollout, Score


@pytest.fixture
def rollout() -> Callable[..., Rollout]:
    """`rollout(text, tokens=3, finished=True, **gold)`: an answer to one and the same question."""

    def make(text: str = "x", tokens: int = 3, finished: bool = True, **gold: Any) -> Rollout:
        message = Message(role="user", parts=(Part(kind="text", text="what?"),))
        prompt = Prompt(id="p", messages=(message,), gold=gold)
        return Rollout(
            prompt=prompt, response=Response(tokens=tuple(range(tokens)), text=text, finished=finished)
        )

    return make


@pytest.fixture
def told() -> Callable[..., Any]:
    """`told({"a": 1.0, "b": None})`: a reward that says so of each text; None is missing, a dict parts."""

    def make(table: Mapping[str, Any], name: str = "unknown") -> Any:
        def reward(prompt: Prompt, response: Response) -> Score:
            value = table[response.text]
            if value is None:
                return Score(value=None, missing=name)
            if isinstance(value, Mapping):
                return Score(value=sum(value.values()), parts=value)
            return Score(value=value)

        return reward

    return make


@pytest.fixture
def group() -> Callable[..., tuple[Score, ...]]:
    """`group(reward, rollouts, step=1)`: the scores of one group."""

    def run(reward: Any, rollouts: Sequence[Rollout], step: int = 1) -> tuple[Score, ...]:
        return asyncio.run(judge_group(reward, rollouts, {}, step))

    return run
