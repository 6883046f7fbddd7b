"""From the material of a group to comparisons: cells and named edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipelines.rollout import Draft
from pipelines.types import Candidate, Comparison, Preference


class Compare(Protocol):
    """Builds zero or more comparisons; `emits` lists the edge names, checked against the objective."""

    @property
    def emits(self) -> frozenset[str]: ...

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]: ...


@dataclass(frozen=True)
class Edges:
    """One comparison whose edges join cells written as "response@prompt".

    `Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")})`: the chosen answer is preferred to the
    rejected one under the clean prompt x, and under x to itself under the damaged prompt m.
    """

    edges: Mapping[str, tuple[str, str]]  # name -> (winner cell, loser cell)

    @property
    def emits(self) -> frozenset[str]:
        return frozenset(self.edges)

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]:
        cells = list(dict.fromkeys(cell for pair in self.edges.values() for cell in pair))
        responses = list(dict.fromkeys(cell.split("@")[0] for cell in cells))
        prompts = list(dict.fromkeys(cell.split("@")[1] for cell in cells))

        def candidate(cell: str) -> Candidate:
            response, prompt = cell.split("@")
            index = draft.chosen[response]
            return Candidate(
                prompt=prompts.index(prompt),
                response=responses.index(response),
                role=cell,
                score=draft.scores[index],
                behaviour=draft.rollouts[index].behaviour,
            )

        preferences = tuple(
            Preference(name=name, winner=cells.index(winner), loser=cells.index(loser))
            for name, (winner, loser) in self.edges.items()
        )
        comparison = Comparison(
            id=f"{group}/0",
            prompts=tuple(draft.prompts[name] for name in prompts),
            responses=tuple(draft.rollouts[draft.chosen[name]].response for name in responses),
            candidates=tuple(candidate(cell) for cell in cells),
            preferences=preferences,
        )
        return (comparison,)
