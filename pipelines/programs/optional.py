"""A step that may find nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.decoding import Ability
from pipelines.rollout import Draft, Drop, Step, Tools


@dataclass(frozen=True)
class Maybe(Step):
    """The step, or the draft as it was when the step would drop the group. What it makes is then missing:
    list it as optional in `compare`."""

    step: Step

    @property
    def needs(self) -> frozenset[Ability]:
        return self.step.needs

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        try:
            return await self.step(draft, tools, seed)
        except Drop:
            return draft
