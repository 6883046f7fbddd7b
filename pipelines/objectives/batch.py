"""From comparisons to the tensors that terms read, and the numbers to log from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelines.objectives.base import EdgeTable, Reads, log_ratio
from pipelines.types import Comparison, Preference, Prompt, Response

Totals = dict[str, tuple[float, float]]  # metric -> (sum, count): adds up over micro-batches and ranks


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to score: a response under a prompt, for one comparison of the micro-batch."""

    comparison: int
    prompt: Prompt
    response: Response


@dataclass(frozen=True, kw_only=True)
class Table:
    """A micro-batch laid out for scoring; N cells, each scored once."""

    size: int  # comparisons
    cells: tuple[Cell, ...]  # [N]
    index: tuple[tuple[int, ...], ...]  # [size][candidate of that comparison] -> row in cells
    edges: Mapping[str, EdgeTable]


def tabulate(comparisons: Sequence[Comparison], device: torch.device | str | None = None) -> Table:
    """Lay out comparisons: candidates with equal prompt digest and equal tokens share one cell.

    Cells are shared inside a comparison only, so that a cell has one owner. The edge tensors are on `device`.
    """
    cells: list[Cell] = []
    index: list[tuple[int, ...]] = []
    edges: dict[str, list[tuple[int, int, int, Preference]]] = {}
    for number, comparison in enumerate(comparisons):
        rows: dict[tuple[str, tuple[int, ...]], int] = {}
        for candidate in comparison.candidates:
            prompt, response = comparison.prompts[candidate.prompt], comparison.responses[candidate.response]
            if (prompt.digest, response.tokens) not in rows:
                rows[prompt.digest, response.tokens] = len(cells)
                cells.append(Cell(comparison=number, prompt=prompt, response=response))
        places = tuple(
            rows[comparison.prompts[c.prompt].digest, comparison.responses[c.response].tokens]
            for c in comparison.candidates
        )
        index.append(places)
        for edge in comparison.preferences:
            entry = (places[edge.winner], places[edge.loser], number, edge)
            edges.setdefault(edge.name, []).append(entry)
    tables = {name: _edge_table(entries, device) for name, entries in edges.items()}
    return Table(size=len(comparisons), cells=tuple(cells), index=tuple(index), edges=tables)


def _edge_table(
    entries: Sequence[tuple[int, int, int, Preference]], device: torch.device | str | None
) -> EdgeTable:
    winners, losers, owners, preferences = zip(*entries, strict=True)
    return EdgeTable(
        winner=torch.tensor(winners, dtype=torch.int64, device=device),
        loser=torch.tensor(losers, dtype=torch.int64, device=device),
        owner=torch.tensor(owners, dtype=torch.int64, device=device),
        margin=torch.tensor([p.margin for p in preferences], dtype=torch.float32, device=device),
        weight=torch.tensor([p.weight for p in preferences], dtype=torch.float32, device=device),
    )


@torch.no_grad()
def margins(reads: Reads) -> Totals:
    """Sums and counts over the edges of each name; edges of weight 0 do not count.

    For an edge name e: `margin/e` is rho_w - rho_l (nats, not scaled by beta), `accuracy/e` the share of
    edges whose margin is positive (a margin of exactly 0 counts one half). From the edge "text" also
    `logp_chosen` and `logp_rejected`, in nats.
    """
    rho, policy = log_ratio(reads), reads.logps["policy"]
    totals: Totals = {}
    for name, table in reads.edges.items():
        counted = table.weight > 0
        winner, loser = table.winner[counted], table.loser[counted]
        margin = rho[winner] - rho[loser]
        values = {f"margin/{name}": margin, f"accuracy/{name}": (margin > 0) + 0.5 * (margin == 0)}
        if name == "text":
            values |= {"logp_chosen": policy[winner], "logp_rejected": policy[loser]}
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
