"""From the material of a group to comparisons: cells, named edges, roles, token spans.

`Edges({...}) | Cells({...}) | DiffSpans("seg")`: parts joined by `|` fill the same comparison, and what
marks spans comes after the edges that it marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from pipelines.rollout import Draft
from pipelines.types import Candidate, Comparison, Preference, Prompt, Response

T = TypeVar("T", Prompt, Response)


class Compare:
    """Builds the comparisons of a group. What it declares is checked against objective and program."""

    @property
    def emits(self) -> frozenset[str]:
        """Names of edges."""
        return frozenset()

    @property
    def roles(self) -> frozenset[str]:
        """Names of cells."""
        return frozenset()

    @property
    def spans(self) -> frozenset[str]:
        """Names of token spans on edges."""
        return frozenset()

    @property
    def takes(self) -> frozenset[str]:
        """Names of responses and prompts that the program has to make."""
        return frozenset()

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]:
        """The comparisons; ids are "<group>/<number>"."""
        empty = Comparison(id=f"{group}/0", prompts=(), responses=(), candidates=(), preferences=())
        filled = self.fill(empty, draft)
        return (filled,) if filled.candidates else ()

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        """The comparison with this part added."""
        raise TypeError(f"{type(self).__name__} does not define what it adds")

    def __or__(self, other: Compare) -> Compare:
        return Joined((self, other))


@dataclass(frozen=True)
class Joined(Compare):
    """Parts that fill one comparison, in order."""

    parts: tuple[Compare, ...]

    @property
    def emits(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.emits)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.roles)

    @property
    def spans(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.spans)

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.takes)

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        for part in self.parts:
            comparison = part.fill(comparison, draft)
        return comparison

    def __or__(self, other: Compare) -> Compare:
        return Joined((*self.parts, other))


@dataclass(frozen=True)
class Edges(Compare):
    """Edges that join cells written as "response@prompt".

    `Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")})`: the chosen answer is preferred to the
    rejected one under the clean prompt x, and under x to itself under the damaged prompt m. A cell is called
    as it is written.

    An edge listed in `optional` is left out when the program made no such response or prompt (a prompt
    without media has no damaged twin); any other edge must be there. Raises ValueError for a cell that is not
    written so, an edge from a cell to itself, an unknown optional edge, and a missing response or prompt.
    """

    edges: Mapping[str, tuple[str, str]]  # name -> (winner cell, loser cell)
    optional: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, (winner, loser) in self.edges.items():
            for cell in (winner, loser):
                split(cell, f"edge {name!r}")
            if winner == loser:
                raise ValueError(f"edge {name!r} compares the cell {winner!r} with itself")
        if unknown := self.optional - set(self.edges):
            raise ValueError(f"optional edges {sorted(unknown)} are not among the edges {sorted(self.edges)}")

    @property
    def emits(self) -> frozenset[str]:
        return frozenset(self.edges)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(cell for pair in self.edges.values() for cell in pair)

    @property
    def takes(self) -> frozenset[str]:
        required = (pair for name, pair in self.edges.items() if name not in self.optional)
        return frozenset(part for pair in required for cell in pair for part in cell.split("@"))

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        for name, (winner, loser) in self.edges.items():
            if not self._present(name, (winner, loser), comparison.id, draft):
                continue
            comparison, first = with_cell(comparison, draft, winner)
            comparison, second = with_cell(comparison, draft, loser)
            edge = Preference(name=name, winner=first, loser=second)
            comparison = replace(comparison, preferences=(*comparison.preferences, edge))
        return comparison

    def _present(self, name: str, cells: tuple[str, str], where: str, draft: Draft) -> bool:
        missing = [cell for cell in cells if not _has(draft, cell)]
        if missing and name not in self.optional:
            made = f"the responses {sorted(draft.chosen)} and the prompts {sorted(draft.prompts)}"
            raise ValueError(
                f"comparison {where}: the edge {name!r} needs the cell {missing[0]!r}, but the program made "
                f"only {made}; add the step that makes it, or list the edge in `optional`"
            )
        return not missing


@dataclass(frozen=True)
class Cells(Compare):
    """Cells by role: `Cells({"gold": "g@x", "y": "y@x"})`. A name that stands for a set gives one cell each.

    A role listed in `optional` is left out when the program made no such response or prompt.
    """

    cells: Mapping[str, str]  # role -> "response@prompt"
    optional: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for role, cell in self.cells.items():
            split(cell, f"role {role!r}")

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.cells)

    @property
    def takes(self) -> frozenset[str]:
        required = (cell for role, cell in self.cells.items() if role not in self.optional)
        return frozenset(part for cell in required for part in cell.split("@"))

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        for role, cell in self.cells.items():
            response, prompt = cell.split("@")
            here = prompt in draft.prompts and (response in draft.sets or response in draft.chosen)
            if not here and role in self.optional:
                continue
            for index in draft.members(response):
                comparison, _ = place(comparison, draft, role, index, draft.at(prompt))
        return comparison


def split(cell: str, where: str) -> tuple[str, str]:
    """(response, prompt) of a cell. Raises ValueError when it is not written "response@prompt"."""
    response, at, prompt = cell.partition("@")
    if not (response and at and prompt):
        raise ValueError(f"{where}: expected cells like 'w@x', got {cell!r}")
    return response, prompt


def with_cell(comparison: Comparison, draft: Draft, cell: str) -> tuple[Comparison, int]:
    """The comparison with that cell, called as it is written, and the cell's index."""
    for index, known in enumerate(comparison.candidates):
        if known.role == cell:
            return comparison, index
    response, prompt = cell.split("@")
    return place(comparison, draft, cell, draft.chosen[response], draft.prompts[prompt])


def place(
    comparison: Comparison, draft: Draft, role: str, index: int, prompt: Prompt
) -> tuple[Comparison, int]:
    """The comparison with rollout `index` of the draft under `prompt`, called `role`, and the cell's index.

    Prompts and responses that are in the tables already are not listed twice.
    """
    rollout = draft.rollouts[index]
    prompts, at = _with(comparison.prompts, prompt)
    responses, which = _with(comparison.responses, rollout.response)
    candidate = Candidate(
        prompt=at,
        response=which,
        role=role,
        score=draft.scores[index],
        behaviour=rollout.behaviour,
        sampled_under=rollout.prompt.digest if rollout.behaviour is not None else None,
    )
    candidates = (*comparison.candidates, candidate)
    filled = replace(comparison, prompts=prompts, responses=responses, candidates=candidates)
    return filled, len(candidates) - 1


def _with(table: tuple[T, ...], item: T) -> tuple[tuple[T, ...], int]:
    found = next((i for i, known in enumerate(table) if known == item), len(table))
    return (table if found < len(table) else (*table, item)), found


def _has(draft: Draft, cell: str) -> bool:
    response, prompt = cell.split("@")
    return response in draft.chosen and prompt in draft.prompts
