"""Vector rewards: a direction that is drawn, stated and followed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.perturbations.prompts import add_text
from pipelines.rollout import Draft, Drop, Step, Tools

SHARES = ("direction.first", "direction.second")  # the draft's facts


def wish(parts: Sequence[str], direction: Sequence[float]) -> str:
    """A direction as the policy is told it: whole numbers of a hundred, one for each part of the score."""
    return " ".join(f"{part}: {round(100 * share)}." for part, share in zip(parts, direction, strict=True))


@dataclass(frozen=True)
class Direct(Step):
    """Draws v = (cos t, sin t) with |t| <= `degrees` and adds a prompt `name` that states it.

    DPA, arXiv 2402.18571 (README read): the wishes are given as whole numbers of a hundred.
    """

    name: str
    first: str
    second: str
    degrees: float = 45.0

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        angle = math.radians(random.Random(seed).uniform(-self.degrees, self.degrees))
        along = (math.cos(angle), math.sin(angle))
        text = wish((self.first, self.second), along)
        facts = {**draft.facts, **dict(zip(SHARES, along, strict=True))}
        return replace(
            draft.with_prompt(self.name, add_text(draft.prompt, text, origin=self.name)), facts=facts
        )


@dataclass(frozen=True)
class Along(Step):
    """The sample with the largest v . r, where v was drawn by `Direct`; among equals the first."""

    name: str
    first: str = "helpfulness"
    second: str = "brevity"
    of: str = "y"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        along = [draft.facts[share] for share in SHARES]
        values: dict[int, float] = {}
        for index in draft.members(self.of):
            score = draft.scores[index]
            if score is not None and score.value is not None:
                parts = [score.parts[self.first], score.parts[self.second]]
                values[index] = sum(share * part for share, part in zip(along, parts, strict=True))
        if not values:
            raise Drop("missing_score")
        best = max(values, key=lambda index: values[index])
        return replace(draft, chosen={**draft.chosen, self.name: best})
