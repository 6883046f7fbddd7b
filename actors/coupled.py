"""Terms that couple comparisons, by gradient replay.

A first pass without gradient reads all tokens of the global batch. The term is differentiated with respect to
them, and the second pass trains sum(dL/ds * s) of each micro-batch's own tokens s: whatever the micro-batches
and ranks, the gradient is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.objectives.base import Reads, Term
from pipelines.objectives.batch import tabulate
from pipelines.types import Comparison

Tokens = Mapping[str, Tensor]  # view -> [N, L] of one micro-batch, in host memory


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank read without gradient."""

    comparisons: tuple[Comparison, ...]  # in order
    tokens: tuple[Tokens, ...]  # of each micro-batch


def part(comparisons: Sequence[Sequence[Comparison]], reads: Sequence[Reads]) -> Part:
    """What a rank read of its micro-batches."""
    return Part(
        comparisons=tuple(comparison for chunk in comparisons for comparison in chunk),
        tokens=tuple({view: values.cpu() for view, values in item.tokens.items()} for item in reads),
    )


def whole(parts: Sequence[Part], carry: Mapping[str, float], device: torch.device) -> Reads:
    """The global batch: comparisons of all ranks, in rank order."""
    table = tabulate([c for part in parts for c in part.comparisons], device)
    reads = table.reads(device)
    tokens: dict[str, Tensor] = {}
    chunks = [chunk for part in parts for chunk in part.tokens]
    for view in {view for chunk in chunks for view in chunk}:
        rows = torch.zeros(reads.mask.shape, dtype=torch.float32)
        at = 0
        for chunk in chunks:
            count, length = chunk[view].shape
            rows[at : at + count, :length] = chunk[view]
            at += count
        tokens[view] = rows.to(device)
    return replace(reads, tokens=tokens, carry=carry)


def differentiated(term: Term, reads: Reads, scale: float) -> tuple[Tensor, Tensor]:
    """(values [size], d(scale * sum of values) / d log-prob [N, L]) of the term over the global batch."""
    policy = reads.tokens["policy"].clone().requires_grad_()
    with torch.enable_grad():
        values = term.value(replace(reads, tokens={**reads.tokens, "policy": policy}))
        total = scale * values.sum()
    if not total.requires_grad:
        return values, torch.zeros_like(policy)
    (gradient,) = torch.autograd.grad(total, policy)
    if not torch.isfinite(total):
        gradient = torch.full_like(gradient, torch.nan)  # no part may pass for finite
    return values.detach(), gradient


def of_rank(gradient: Tensor, parts: Sequence[Part], rank: int) -> list[Tensor]:
    """The rows of each micro-batch of one rank, cut to its own length."""
    at = sum(len(chunk["policy"]) for part in parts[:rank] for chunk in part.tokens)
    found: list[Tensor] = []
    for chunk in parts[rank].tokens:
        count, length = chunk["policy"].shape
        found.append(gradient[at : at + count, :length])
        at += count
    return found
