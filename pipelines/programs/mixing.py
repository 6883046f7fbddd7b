"""Steps that decide which of two programs a group runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.decoding import Ability
from pipelines.rollout import Draft, Drop, Step, Tools


@dataclass(frozen=True)
class _Two(Step):
    @property
    def both(self) -> tuple[Step, Step]:
        raise NotImplementedError

    @property
    def makes(self) -> frozenset[str]:
        first, second = self.both
        return first.makes & second.makes

    @property
    def needs(self) -> frozenset[Ability]:
        first, second = self.both
        return first.needs | second.needs


@dataclass(frozen=True)
class Either(_Two):
    """The first program with probability `p`, else the second; drawn per group from its seed.

    Mixed-DPO, "Understanding Alignment in Multimodal LLMs" (paper read), with p = 0.5.
    """

    p: float
    first: Step
    second: Step

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"Either(p=...): expected a probability, got {self.p}")

    @property
    def both(self) -> tuple[Step, Step]:
        return self.first, self.second

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        step = self.first if np.random.default_rng(seed).random() < self.p else self.second
        return await step(draft, tools, seed)


@dataclass(frozen=True)
class When(_Two):
    """The first program for rows whose `column` holds one of `values`, else the second."""

    column: str
    values: tuple[Any, ...]
    first: Step
    second: Step

    @property
    def both(self) -> tuple[Step, Step]:
        return self.first, self.second

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        step = self.first if draft.prompt.gold.get(self.column) in self.values else self.second
        return await step(draft, tools, seed)


@dataclass(frozen=True)
class Otherwise(_Two):
    """The first program; where it drops the group for one of `reasons`, the second from the same start."""

    first: Step
    second: Step
    reasons: frozenset[str]

    @property
    def both(self) -> tuple[Step, Step]:
        return self.first, self.second

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        try:
            return await self.first(draft, tools, seed)
        except Drop as drop:
            if drop.reason not in self.reasons:
                raise
            return await self.second(draft, tools, seed)
