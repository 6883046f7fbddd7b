"""What a term of an objective reads and returns.

A term maps a micro-batch of comparisons to one (value, weight) pair per comparison. Weights must not
depend on the policy: the learner divides the sum of values by the sum of weights over the *global* batch,
so that padding, packing, micro-batches, ranks and order never change a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EdgeTable:
    """The edges of one name in a micro-batch; E edges."""

    winner: Tensor  # [E] int64, index into the cells
    loser: Tensor  # [E] int64
    owner: Tensor  # [E] int64, index of the comparison
    margin: Tensor  # [E] float, nats
    weight: Tensor  # [E] float


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What the forward read for a micro-batch of `size` comparisons with N cells in all."""

    size: int
    logps: Mapping[str, Tensor]  # view ("policy", "reference") -> [N], summed over tokens, nats
    lengths: Tensor  # [N] int64, tokens of each response
    edges: Mapping[str, EdgeTable]  # edge name -> table; a name that no comparison has is absent


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A term's result: both [size]; `value` already contains the weight."""

    value: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Term:
    """Base of all terms: stateless, separable per comparison.

    `0.2 * Pair("media") + Anchor("text.winner")` builds an `Objective`.
    """

    on: str  # an edge name, or one side of it: "text.winner"

    @property
    def edge(self) -> str:
        return self.on.split(".")[0]

    @property
    def views(self) -> tuple[str, ...]:
        return ("policy", "reference")

    def __call__(self, reads: Reads) -> Loss:
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def __rmul__(self, weight: float) -> Objective:
        return Objective(((float(weight), self),))

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(((1.0, self),)) + other


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms."""

    terms: tuple[tuple[float, Term], ...]

    def __add__(self, other: Term | Objective) -> Objective:
        added = other.terms if isinstance(other, Objective) else ((1.0, other),)
        return Objective(self.terms + added)

    @property
    def edges(self) -> frozenset[str]:
        """Names of the edges that the terms read."""
        return frozenset(term.edge for _, term in self.terms)

    @property
    def views(self) -> frozenset[str]:
        return frozenset(view for _, term in self.terms for view in term.views)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"weight": weight, "term": repr(term)} for weight, term in self.terms]


def log_ratio(reads: Reads) -> Tensor:
    """rho = log pi - log pi_ref of each cell, [N], summed over tokens, nats."""
    return reads.logps["policy"] - reads.logps["reference"]


def per_comparison(values: Tensor, owner: Tensor, size: int) -> Tensor:
    """Sum edge values [E] into their comparisons [size]."""
    return values.new_zeros(size).index_add(0, owner, values)


def absent(reads: Reads) -> Loss:
    """The loss of a term whose edge no comparison of the micro-batch has: value 0 and weight 0 everywhere."""
    zeros = reads.logps["policy"].new_zeros(reads.size)
    return Loss(value=zeros, weight=zeros)
