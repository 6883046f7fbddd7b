"""What a reward is: a judgement of one answer to one prompt."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Protocol

from pipelines.types import Prompt, Response, Score


class Reward(Protocol):
    """Scores a response to the prompt it was sampled under; what cannot be scored is *missing*, never 0.

    A reward never raises because of what it judges.
    """

    def __call__(self, prompt: Prompt, response: Response) -> Score | Awaitable[Score]: ...


async def judge(reward: Reward, prompt: Prompt, response: Response) -> Score:
    """Call a reward, whether it answers at once or later."""
    verdict = reward(prompt, response)
    return await verdict if inspect.isawaitable(verdict) else verdict
