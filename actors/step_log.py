"""What a learner step adds up on each rank, and the metrics of the global batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from actors.sight import media_edges
from pipelines.objectives.base import Reads, log_ratio
from pipelines.objectives.batch import Table, Totals, add_totals, margins, means
from pipelines.types import Comparison, Group


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did. Metrics are of the global batch and equal on all ranks; margins are this rank's."""

    metrics: dict[str, float]  # finite numbers only
    margins: tuple[Mapping[str, float], ...]  # per comparison of this rank: edge name -> rho_w - rho_l, nats
    applied: bool  # False: nothing to learn from, or a loss or gradient that is not finite


@dataclass
class Sums:
    """What adds up over the micro-batches of one rank."""

    losses: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # per term, over the global denominator
    totals: Totals = field(default_factory=dict[str, tuple[float, float]])
    reliances: list[float] = field(default_factory=list[float])  # per edge whose media differ, nats
    margins: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one rank's share of a step holds."""

    groups: int
    comparisons: int
    tokens: int  # answer tokens of the distinct responses
    facts: Totals  # of the groups: reward, ...
    lags: tuple[int, ...]  # published versions each group is behind


def count(groups: Sequence[Group], published: int) -> Counts:
    """Sizes, facts and lags of a rank's groups."""
    comparisons = [comparison for group in groups for comparison in group.comparisons]
    return Counts(
        groups=len(groups),
        comparisons=len(comparisons),
        tokens=sum(len(response.tokens) for c in comparisons for response in c.responses),
        facts=add_totals([{key: (value, 1.0) for key, value in group.facts.items()} for group in groups]),
        lags=tuple(published - group.version for group in groups),
    )


@torch.no_grad()
def note(sums: Sums, table: Table, reads: Reads, comparisons: Sequence[Comparison]) -> None:
    """Adds one micro-batch: margins, accuracies and the policy's reliance on media."""
    sums.totals = add_totals([sums.totals, margins(reads)])
    rho, policy = log_ratio(reads).tolist(), reads.logps["policy"].tolist()
    for number, comparison in enumerate(comparisons):
        rows = table.index[number]
        sums.margins.append(
            {edge.name: rho[rows[edge.winner]] - rho[rows[edge.loser]] for edge in comparison.preferences}
        )
        for position in media_edges(comparison):
            edge = comparison.preferences[position]
            sums.reliances.append(policy[rows[edge.winner]] - policy[rows[edge.loser]])


def summary(parts: Sequence[tuple[Sums, Counts]]) -> dict[str, float]:
    """Metrics of the global batch from every rank's sums, in rank order."""
    sums, counts = [part[0] for part in parts], [part[1] for part in parts]
    metrics = means(add_totals([item.facts for item in counts]))
    metrics |= means(add_totals([item.totals for item in sums]))
    losses = add_totals([{name: (value, 1.0) for name, value in item.losses.items()} for item in sums])
    if losses:
        metrics |= {f"loss/{name}": total for name, (total, _) in losses.items()}
        metrics["loss"] = math.fsum(total for total, _ in losses.values())
    reliances = [value for item in sums for value in item.reliances]
    if reliances:
        metrics["visual_reliance"] = math.fsum(reliances) / len(reliances)
    lags = [lag for item in counts for lag in item.lags]
    if lags:
        metrics |= {"lag_max": float(max(lags)), "lag_mean": sum(lags) / len(lags)}
    for name in ("groups", "comparisons", "tokens"):
        metrics[name] = float(sum(getattr(item, name) for item in counts))
    return metrics
