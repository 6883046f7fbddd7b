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

    An edge listed in `optional` is left out when the program made no such response or prompt (a prompt
    without media has no damaged twin); any other edge must be there. Raises ValueError for a cell that is not
    written so, an edge from a cell to itself, an unknown optional edge, and a missing response or prompt.
    """

    edges: Mapping[str, tuple[str, str]]  # name -> (winner cell, loser cell)
    optional: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, (winner, loser) in self.edges.items():
            for cell in (winner, loser):
                response, at, prompt = cell.partition("@")
                if not (response and at and prompt):
                    raise ValueError(f"edge {name!r}: expected cells like 'w@x', got {cell!r}")
            if winner == loser:
                raise ValueError(f"edge {name!r} compares the cell {winner!r} with itself")
        if unknown := self.optional - set(self.edges):
            raise ValueError(f"optional edges {sorted(unknown)} are not among the edges {sorted(self.edges)}")

    @property
    def emits(self) -> frozenset[str]:
        return frozenset(self.edges)

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]:
        edges = self._present(group, draft)
        cells = list(dict.fromkeys(cell for pair in edges.values() for cell in pair))
        responses = list(dict.fromkeys(cell.split("@")[0] for cell in cells))
        prompts = list(dict.fromkeys(cell.split("@")[1] for cell in cells))
        if not cells:
            return ()

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
            for name, (winner, loser) in edges.items()
        )
        comparison = Comparison(
            id=f"{group}/0",
            prompts=tuple(draft.prompts[name] for name in prompts),
            responses=tuple(draft.rollouts[draft.chosen[name]].response for name in responses),
            candidates=tuple(candidate(cell) for cell in cells),
            preferences=preferences,
        )
        return (comparison,)

    def _present(self, group: str, draft: Draft) -> dict[str, tuple[str, str]]:
        """The edges whose responses and prompts the draft has."""
        present: dict[str, tuple[str, str]] = {}
        for name, pair in self.edges.items():
            missing = [cell for cell in pair if not _has(draft, cell)]
            if not missing:
                present[name] = pair
            elif name not in self.optional:
                made = f"the responses {sorted(draft.chosen)} and the prompts {sorted(draft.prompts)}"
                raise ValueError(
                    f"group {group}: the edge {name!r} needs the cell {missing[0]!r}, but the program made "
                    f"only {made}; add the step that makes it, or list the edge in `optional`"
                )
        return present


def _has(draft: Draft, cell: str) -> bool:
    response, prompt = cell.split("@")
    return response in draft.chosen and prompt in draft.prompts
