"""What a learner step adds up on each rank, and the metrics of the global batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actors.sight import media_edges
from pipelines.objectives.base import Objective, Reads, log_ratio
from pipelines.objectives.batch import Table, Totals, add_totals, margins, means
from pipelines.types import Comparison, Group

NAMED = 8  # comparisons with bad numbers that a rank names per step


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did. All but `margins` is of the global batch and equal on all ranks."""

    metrics: dict[str, float]  # finite numbers only
    margins: tuple[Mapping[str, float], ...]  # per comparison of this rank: edge name -> rho_w - rho_l, nats
    applied: bool  # False: nothing to learn from, or a loss or gradient that is not finite
    bad: tuple[str, ...] = ()  # comparisons whose log-probs or losses are not finite, for people


@dataclass
class Sums:
    """What adds up over the micro-batches of one rank."""

    losses: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # per term, over the global denominator
    totals: Totals = field(default_factory=dict[str, tuple[float, float]])
    observed: Totals = field(default_factory=dict[str, tuple[float, float]])  # for running statistics
    reliances: list[float] = field(default_factory=list[float])  # per edge whose media differ, nats
    margins: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    bad: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one rank's share of a step holds."""

    groups: int
    comparisons: int
    tokens: int  # answer tokens of the distinct responses
    facts: Totals  # of the groups: reward, ...
    lags: tuple[int, ...]  # published versions that each group is behind at its first use


def count(groups: Sequence[Group], published: int) -> Counts:
    """Sizes, facts and lags of a rank's groups; those that come up again are only counted as comparisons."""
    fresh = [group for group in groups if group.use == 1]
    comparisons = [comparison for group in groups for comparison in group.comparisons]
    return Counts(
        groups=len(fresh),
        comparisons=len(comparisons),
        tokens=sum(len(response.tokens) for c in comparisons for response in c.responses),
        facts=add_totals([{key: (value, 1.0) for key, value in group.facts.items()} for group in fresh]),
        lags=tuple(published - group.version for group in fresh),
    )


def term_names(objective: Objective) -> list[str]:
    """The key of each term's loss: its label, numbered where two would be alike."""
    names = [term.label for _, term in objective.terms]
    return [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


@torch.no_grad()
def note(sums: Sums, table: Table, reads: Reads, comparisons: Sequence[Comparison]) -> None:
    """Adds one micro-batch: margins, accuracies and the policy's reliance on media."""
    sums.totals = add_totals([sums.totals, margins(reads), rollout_gap(table, reads, comparisons)])
    policy = reads.tokens["policy"].sum(-1)
    rho = (log_ratio(reads) if "reference" in reads.tokens else policy).tolist()
    logps = policy.tolist()
    for rows, comparison in zip(table.index, comparisons, strict=True):
        found: dict[str, list[float]] = {}
        for edge in comparison.preferences:
            found.setdefault(edge.name, []).append(rho[rows[edge.winner]] - rho[rows[edge.loser]])
        sums.margins.append({name: sum(values) / len(values) for name, values in found.items()})
        for position in media_edges(comparison):
            edge = comparison.preferences[position]
            sums.reliances.append(logps[rows[edge.winner]] - logps[rows[edge.loser]])


def rollout_gap(table: Table, reads: Reads, comparisons: Sequence[Comparison]) -> Totals:
    """`rollout_gap`: mean |log-prob of the learner - log-prob when sampled| over the tokens that the policy
    sampled under the prompt they are scored under, nats. Holds what changed since they were sampled, too."""
    rows = sorted(
        {
            row
            for places, comparison in zip(table.index, comparisons, strict=True)
            for row, cell in zip(places, comparison.candidates, strict=True)
            if cell.behaviour is not None
            and cell.behaviour.stream == "policy"
            and cell.sampled_under == comparison.prompts[cell.prompt].digest
        }
    )
    sampled, learner = table.behaviour(reads.mask.device)[rows], reads.tokens["policy"][rows]
    known = reads.mask[rows] & torch.isfinite(sampled)
    count = int(known.sum())
    gap = (learner - sampled)[known].abs().double().sum()
    return {"rollout_gap": (float(gap), float(count))} if count else {}


def bad_tokens(table: Table, reads: Reads, comparisons: Sequence[Comparison]) -> list[str]:
    """The cells with a log-probability of policy or reference that is not finite."""
    found: list[str] = []
    for view in ("policy", "reference"):
        if view not in reads.tokens:
            continue
        for row in (~torch.isfinite(reads.tokens[view])).any(-1).nonzero().flatten().tolist():
            cell = table.cells[row]
            comparison, rows = comparisons[cell.comparison], table.index[cell.comparison]
            roles = [c.role for c, place in zip(comparison.candidates, rows, strict=True) if place == row]
            found.append(
                f"comparison {comparison.id}, prompt {cell.prompt.id!r}, cell {'/'.join(roles)}: the "
                f"{view}'s log-probability is not finite"
            )
    return found[:NAMED]


def bad_values(name: str, values: Tensor, comparisons: Sequence[Comparison]) -> list[str]:
    """The comparisons to which a term gives a value that is not finite."""
    rows: list[int] = (~torch.isfinite(values.detach())).nonzero().flatten().tolist()
    return [
        f"comparison {comparisons[row].id}, prompt {comparisons[row].prompts[0].id!r}: the term {name} is "
        f"{float(values[row].detach())}"
        for row in rows[:NAMED]
    ]


def summary(parts: Sequence[tuple[Sums, Counts]]) -> dict[str, float]:
    """Metrics of the global batch from every rank's sums, in rank order."""
    sums, counts = [part[0] for part in parts], [part[1] for part in parts]
    metrics = means(add_totals([item.facts for item in counts]))
    metrics |= means(add_totals([item.totals for item in sums]))
    losses = add_totals([{name: (value, 1.0) for name, value in item.losses.items()} for item in sums])
    if losses:
        metrics |= {f"loss/{name}": total for name, (total, _) in losses.items()}
        metrics["loss"] = sum(total for total, _ in losses.values())
    reliances = [value for item in sums for value in item.reliances]
    if reliances:
        metrics["visual_reliance"] = math.fsum(reliances) / len(reliances)
    lags = [lag for item in counts for lag in item.lags]
    if lags:
        metrics |= {"lag_max": float(max(lags)), "lag_mean": sum(lags) / len(lags)}
    for name in ("groups", "comparisons", "tokens"):
        metrics[name] = float(sum(getattr(item, name) for item in counts))
    if bad := sum(len(item.bad) for item in sums):
        metrics["bad_numbers"] = float(bad)
    return metrics
