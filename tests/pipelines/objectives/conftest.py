"""Reads made from plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from pipelines.objectives.base import EdgeTable, Reads

Edge = tuple[int, int, int]  # (winner cell, loser cell, comparison)


@pytest.fixture
def make_reads() -> Callable[..., Reads]:
    """Build `Reads` from rho per cell (reference 0) and edges as (winner, loser, owner[, margin, weight])."""

    def build(rho: Sequence[float], edges: dict[str, Sequence[Sequence[float]]], size: int) -> Reads:
        tables: dict[str, EdgeTable] = {}
        for name, rows in edges.items():
            full = [(*row, *(0.0, 1.0)[len(row) - 3 :]) for row in rows]
            tables[name] = EdgeTable(
                winner=torch.tensor([int(row[0]) for row in full]),
                loser=torch.tensor([int(row[1]) for row in full]),
                owner=torch.tensor([int(row[2]) for row in full]),
                margin=torch.tensor([float(row[3]) for row in full], dtype=torch.float64),
                weight=torch.tensor([float(row[4]) for row in full], dtype=torch.float64),
            )
        policy = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
        reference = torch.zeros(len(rho), dtype=torch.float64)
        return Reads(
            size=size,
            logps={"policy": policy, "reference": reference},
            lengths=torch.ones(len(rho), dtype=torch.int64),
            edges=tables,
        )

    return build
