"""From comparisons to the tensors that terms read, and the numbers to log from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, EdgeTable, Reads, Sides, log_ratio
from pipelines.types import NOT_SCORED, Behaviour, Candidate, Comparison, Preference, Prompt, Response, Score

Totals = dict[str, tuple[float, float]]  # metric -> (sum, count): adds up over micro-batches and ranks
Edge = tuple[int, int, int, Preference, Candidate, Candidate]  # winner row, loser row, owner, edge, sides


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to score: a response under a prompt, for one comparison of the micro-batch."""

    comparison: int
    prompt: Prompt
    response: Response
    behaviour: Behaviour | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A micro-batch laid out for scoring; N cells, each scored once."""

    size: int  # comparisons
    cells: tuple[Cell, ...]  # [N]
    index: tuple[tuple[int, ...], ...]  # [size][candidate of that comparison] -> row in cells
    edges: Mapping[str, EdgeTable]
    roles: Mapping[str, CellTable]

    @property
    def longest(self) -> int:
        return max((len(cell.response.tokens) for cell in self.cells), default=0)

    def reads(self, device: torch.device | str | None = None) -> Reads:
        """What terms read, but for log-probs and features."""
        mask = torch.zeros(len(self.cells), self.longest, dtype=torch.bool)
        for row, cell in enumerate(self.cells):
            scored = [token != NOT_SCORED for token in cell.response.scored]
            mask[row, : len(scored)] = torch.tensor(scored, dtype=torch.bool)
        mask = mask.to(device)
        return Reads(
            size=self.size, lengths=mask.sum(-1), mask=mask, tokens={}, edges=self.edges, roles=self.roles
        )

    def behaviour(self, device: torch.device | str | None = None) -> Tensor:
        """[N, L] log-probability of each token when it was sampled, nats; nan where nobody sampled it."""
        rows = torch.full((len(self.cells), self.longest), math.nan)
        for row, cell in enumerate(self.cells):
            if cell.behaviour is not None and len(cell.behaviour.logps) == len(cell.response.tokens):
                rows[row, : len(cell.behaviour.logps)] = torch.tensor(cell.behaviour.logps)
        return rows.to(device)


def tabulate(comparisons: Sequence[Comparison], device: torch.device | str | None = None) -> Table:
    """Lay out comparisons: candidates with equal prompt digest, tokens and targets share one cell.

    Cells are shared inside a comparison only, so that a cell has one owner. The tensors are on `device`.
    """
    cells: list[Cell] = []
    index: list[tuple[int, ...]] = []
    edges: dict[str, list[Edge]] = {}
    roles: dict[str, list[tuple[int, int, Candidate]]] = {}
    for number, comparison in enumerate(comparisons):
        places = _places(comparison, number, cells)
        index.append(places)
        for place, candidate in zip(places, comparison.candidates, strict=True):
            roles.setdefault(candidate.role, []).append((place, number, candidate))
        for edge in comparison.preferences:
            sides = comparison.candidates[edge.winner], comparison.candidates[edge.loser]
            entry = (places[edge.winner], places[edge.loser], number, edge, *sides)
            edges.setdefault(edge.name, []).append(entry)
    longest = max((len(cell.response.tokens) for cell in cells), default=0)
    return Table(
        size=len(comparisons),
        cells=tuple(cells),
        index=tuple(index),
        edges={name: _edge_table(entries, longest, device) for name, entries in edges.items()},
        roles={name: _cell_table(entries, device) for name, entries in roles.items()},
    )


def _places(comparison: Comparison, number: int, cells: list[Cell]) -> tuple[int, ...]:
    """Row of each candidate; new cells are appended."""
    rows: dict[tuple[Any, ...], int] = {}
    places: list[int] = []
    for candidate in comparison.candidates:
        prompt, response = comparison.prompts[candidate.prompt], comparison.responses[candidate.response]
        key = (prompt.digest, response.tokens, response.scored)
        if key not in rows:
            rows[key] = len(cells)
            behaviour = candidate.behaviour
            cells.append(Cell(comparison=number, prompt=prompt, response=response, behaviour=behaviour))
        elif cells[rows[key]].behaviour is None and candidate.behaviour is not None:
            cells[rows[key]] = replace(cells[rows[key]], behaviour=candidate.behaviour)
        places.append(rows[key])
    return tuple(places)


def _edge_table(entries: Sequence[Edge], longest: int, device: torch.device | str | None) -> EdgeTable:
    winners, losers, owners, preferences, wins, losses = zip(*entries, strict=True)

    def column(read: Callable[[Preference], float]) -> Tensor:
        return torch.tensor([read(p) for p in preferences], dtype=torch.float32, device=device)

    def spans(name: str) -> Sides:
        padded = torch.zeros(2, len(entries), longest)
        for row, preference in enumerate(preferences):
            if name not in preference.spans:
                raise ValueError(
                    f"edge {preference.name!r} carries the spans {sorted(preference.spans)}, but another "
                    f"edge of that name carries {name!r}; annotate all of them"
                )
            for side, weights in enumerate(preference.spans[name]):
                padded[side, row, : len(weights)] = torch.tensor(weights)
        return padded[0].to(device), padded[1].to(device)

    winning, losing = _scores(wins, device), _scores(losses, device)
    unscored = torch.full((len(entries),), math.nan, device=device)
    return EdgeTable(
        winner=torch.tensor(winners, dtype=torch.int64, device=device),
        loser=torch.tensor(losers, dtype=torch.int64, device=device),
        owner=torch.tensor(owners, dtype=torch.int64, device=device),
        key=torch.tensor([p.key for p in preferences], dtype=torch.int64, device=device),
        probability=column(lambda p: p.probability),
        margin=column(lambda p: p.margin),
        weight=column(lambda p: p.weight),
        scores={
            name: (winning.get(name, unscored), losing.get(name, unscored))
            for name in sorted(winning.keys() | losing.keys())
        },
        spans={name: spans(name) for name in sorted({name for p in preferences for name in p.spans})},
    )


def _cell_table(
    entries: Sequence[tuple[int, int, Candidate]], device: torch.device | str | None
) -> CellTable:
    places, owners, candidates = zip(*entries, strict=True)
    return CellTable(
        cell=torch.tensor(places, dtype=torch.int64, device=device),
        owner=torch.tensor(owners, dtype=torch.int64, device=device),
        weight=torch.ones(len(entries), device=device),
        scores=_scores(candidates, device),
    )


def _scores(candidates: Iterable[Candidate], device: torch.device | str | None) -> dict[str, Tensor]:
    """ "value" and every part that some candidate has -> [entries]; nan where it is missing."""
    scores = [candidate.score for candidate in candidates]
    names = sorted({name for score in scores if score is not None for name in score.parts})

    def part(score: Score | None, name: str) -> float:
        return score.parts.get(name, math.nan) if score is not None else math.nan

    def value(score: Score | None) -> float:
        return score.value if score is not None and score.value is not None else math.nan

    columns = {"value": [value(score) for score in scores]}
    columns |= {name: [part(score, name) for score in scores] for name in names if name != "value"}
    return {
        name: torch.tensor(column, dtype=torch.float32, device=device) for name, column in columns.items()
    }


@torch.no_grad()
def margins(reads: Reads) -> Totals:
    """Sums and counts over the edges of each name; edges of weight 0 do not count.

    For an edge name e: `margin/e` is rho_w - rho_l (nats, not scaled by beta; of log pi alone where there is
    no reference), `accuracy/e` the share of
    edges whose margin is positive (a margin of exactly 0 counts one half). From the edge "text" also
    `logp_chosen` and `logp_rejected`, in nats, and `length_chosen` and `length_rejected`, in scored tokens.
    """
    policy = reads.logps["policy"]
    rho = log_ratio(reads) if "reference" in reads.tokens else policy
    totals: Totals = {}
    for name, table in reads.edges.items():
        counted = table.weight > 0
        winner, loser = table.winner[counted], table.loser[counted]
        margin = rho[winner] - rho[loser]
        values = {f"margin/{name}": margin, f"accuracy/{name}": (margin > 0) + 0.5 * (margin == 0)}
        if name == "text":
            values |= {"logp_chosen": policy[winner], "logp_rejected": policy[loser]}
            lengths = reads.lengths
            values |= {"length_chosen": lengths[winner], "length_rejected": lengths[loser]}
        totals |= {key: (float(value.double().sum()), float(len(winner))) for key, value in values.items()}
    return totals


def add_totals(parts: Sequence[Totals]) -> Totals:
    """Totals of several micro-batches or ranks as one."""
    whole: Totals = {}
    for part in parts:
        for key, (total, count) in part.items():
            before = whole.get(key, (0.0, 0.0))
            whole[key] = (before[0] + total, before[1] + count)
    return whole


def means(totals: Totals) -> dict[str, float]:
    """Mean of every metric that has counts, and `margin_ratio`, media margin over text margin.

    MFPO (arXiv 2410.15334) reads the balance of the two modalities from these margins. The ratio is absent
    when either margin is, or when the text margin is 0.
    """
    values = {key: total / count for key, (total, count) in totals.items() if count > 0}
    if "margin/media" in values and values.get("margin/text"):
        values["margin_ratio"] = values["margin/media"] / values["margin/text"]
    return values
