"""Parts of `compare` that mark tokens of edges."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.comparisons import Compare
from pipelines.perturbations.tokens import diff_spans
from pipelines.rollout import Draft
from pipelines.types import Comparison, Preference


@dataclass(frozen=True)
class DiffSpans(Compare):
    """The tokens in which the two sides of an edge differ weigh `changed`, the others `same`.

    It comes after the edges that it marks. `against` names a cell that both sides are compared with instead
    of each other, for edges whose sides have one answer. CHiP weighs differing spans more, RRPO reads them
    alone, OPA-DPO multiplies log-ratios by the severity of each revision (all: code read).
    """

    name: str
    edges: tuple[str, ...] = ("text",)
    changed: float = 1.0
    same: float = 0.0
    against: str | None = None

    @property
    def spans(self) -> frozenset[str]:
        return frozenset({self.name})

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        marked = tuple(
            self._marked(comparison, edge) if edge.name in self.edges else edge
            for edge in comparison.preferences
        )
        return replace(comparison, preferences=marked)

    def _marked(self, comparison: Comparison, edge: Preference) -> Preference:
        winner, loser = (self._tokens(comparison, side) for side in (edge.winner, edge.loser))
        if self.against is None:
            first, second = diff_spans(winner, loser)
        else:
            base = self._tokens(comparison, self._base(comparison, self.against))
            first, second = (diff_spans(tokens, base)[0] for tokens in (winner, loser))
        sides = (
            tuple(self.same + (self.changed - self.same) * s for s in first),
            tuple(self.same + (self.changed - self.same) * s for s in second),
        )
        return replace(edge, spans={**edge.spans, self.name: sides})

    def _tokens(self, comparison: Comparison, candidate: int) -> tuple[int, ...]:
        return comparison.responses[comparison.candidates[candidate].response].tokens

    def _base(self, comparison: Comparison, role: str) -> int:
        for index, candidate in enumerate(comparison.candidates):
            if candidate.role == role:
                return index
        roles = sorted({candidate.role for candidate in comparison.candidates})
        raise ValueError(
            f"comparison {comparison.id}: DiffSpans({self.name!r}) compares with the cell {role!r}, but "
            f"there are only {roles}"
        )
