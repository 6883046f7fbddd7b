"""The reward that a preference-tuned model implies: how much likelier it makes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.rewards.base import missing
from pipelines.types import MediaTable, Prompt, Response, Score


class LogProb(Protocol):
    """A fixed model that scores an answer; `actors.judge` has one on vLLM."""

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt), summed, nats."""
        ...


@dataclass(frozen=True)
class Implicit:
    """beta [log pi_tuned(y | x) - log pi_ref(y | x)], nats (DPO, arXiv 2305.18290, section 4; from memory).

    MODPO (arXiv 2310.03708; released code read) takes the frozen margins of its further objectives from a
    DPO adapter this way. Both models must share the policy's tokenizer.
    """

    tuned: LogProb
    reference: LogProb
    beta: float = 0.1

    async def __call__(self, prompt: Prompt, response: Response, media: MediaTable) -> Score:
        if not response.tokens:
            return missing("empty_response")
        models = (self.tuned, self.reference)
        tuned, reference = await asyncio.gather(*(m.logprob(prompt, media, response.tokens) for m in models))
        return Score(value=self.beta * (tuned - reference))
