"""Reads made from plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.objectives.base import CellTable, EdgeTable, Reads

Row = Sequence[float]
F64 = torch.float64


def padded(rows: Sequence[Row], fill: float = 0.0) -> Tensor:
    longest = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=F64).reshape(
        len(rows), longest
    )


def edge_table(rows: Sequence[Row], **extra: Any) -> EdgeTable:
    """Rows (winner cell, loser cell, comparison[, margin, weight])."""
    full = [(*row, *(0.0, 1.0)[len(row) - 3 :]) for row in rows]
    scores = {
        n: (torch.tensor(w, dtype=F64), torch.tensor(o, dtype=F64))
        for n, (w, o) in extra.get("scores", {}).items()
    }
    return EdgeTable(
        winner=torch.tensor([int(row[0]) for row in full], dtype=torch.int64),
        loser=torch.tensor([int(row[1]) for row in full], dtype=torch.int64),
        owner=torch.tensor([int(row[2]) for row in full], dtype=torch.int64),
        key=torch.tensor(extra.get("key", [0] * len(full)), dtype=torch.int64),
        probability=torch.tensor(extra.get("probability", [1.0] * len(full)), dtype=F64),
        margin=torch.tensor([float(row[3]) for row in full], dtype=F64),
        weight=torch.tensor([float(row[4]) for row in full], dtype=F64),
        scores=scores,
        spans=extra.get("spans", {}),
    )


def cell_table(rows: Sequence[Row], scores: Mapping[str, Row]) -> CellTable:
    """Rows (cell, comparison[, weight])."""
    return CellTable(
        cell=torch.tensor([int(row[0]) for row in rows], dtype=torch.int64),
        owner=torch.tensor([int(row[1]) for row in rows], dtype=torch.int64),
        weight=torch.tensor([float(row[2]) if len(row) > 2 else 1.0 for row in rows], dtype=F64),
        scores={name: torch.tensor(values, dtype=F64) for name, values in scores.items()},
    )


@pytest.fixture(scope="session")
def make_reads() -> Callable[..., Reads]:
    """Build float64 `Reads`; log-probs of the policy take a gradient.

    `policy`: a number per cell (one token), or a row of token log-probs per cell; `reference` likewise, 0
    when left out. `edges`: name -> rows (winner, loser, owner[, margin, weight]); `annotated`: name ->
    keyword lists for these rows (key, probability, scores {part: (w, l)}, spans {name: (w, l)}). `roles`:
    name -> rows (cell, owner[, weight]); `scores`: role -> {part: numbers}.
    """

    def build(
        policy: Sequence[float | Row],
        edges: Mapping[str, Sequence[Row]] | None = None,
        size: int = 1,
        *,
        reference: Sequence[float | Row] | None = None,
        roles: Mapping[str, Sequence[Row]] | None = None,
        scores: Mapping[str, Mapping[str, Row]] | None = None,
        annotated: Mapping[str, Mapping[str, Any]] | None = None,
        features: Mapping[str, Tensor] | None = None,
        **extra: Any,
    ) -> Reads:
        rows = [row if isinstance(row, Sequence) else (row,) for row in policy]
        other = [row if isinstance(row, Sequence) else (row,) for row in reference or []]
        tokens = {
            "policy": padded(rows).requires_grad_(),
            "reference": padded(other or [[0.0] * len(r) for r in rows]),
        }
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return Reads(
            size=size,
            lengths=lengths,
            mask=torch.arange(tokens["policy"].shape[1]) < lengths[:, None],
            tokens=tokens,
            edges={
                name: edge_table(r, **(annotated or {}).get(name, {})) for name, r in (edges or {}).items()
            },
            roles={name: cell_table(r, (scores or {}).get(name, {})) for name, r in (roles or {}).items()},
            features=features or {},
            **extra,
        )

    return build
