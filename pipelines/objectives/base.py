"""What a term of an objective reads and returns.

A term maps a micro-batch of comparisons to one (value, weight) pair per comparison. Weights never depend on
the policy: the learner divides the sum of values by the sum of weights over the *global* batch, so that
padding, micro-batches, ranks and order never change a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Sides = tuple[Tensor, Tensor]  # of the winner, of the loser
COUNT = ".count"  # how many values a running mean holds


@dataclass(frozen=True, kw_only=True)
class EdgeTable:
    """The edges of one name in a micro-batch; E edges, answers of at most L tokens."""

    winner: Tensor  # [E] int64, index into the cells
    loser: Tensor  # [E] int64
    owner: Tensor  # [E] int64, index of the comparison
    key: Tensor  # [E] int64; edges of several names with one owner and key are joined
    probability: Tensor  # [E] float, that the winner is better
    margin: Tensor  # [E] float, nats
    weight: Tensor  # [E] float
    scores: Mapping[str, Sides] = field(
        default_factory=dict[str, Sides]
    )  # "value" or a part -> [E], nan: none
    spans: Mapping[str, Sides] = field(default_factory=dict[str, Sides])  # name -> token weights [E, L]

    def part(self, name: str) -> Sides:
        """[E] the value or a part of it for winners and losers, nan where it is missing."""
        missing = torch.full_like(self.weight, torch.nan)
        return self.scores.get(name, (missing, missing))


@dataclass(frozen=True, kw_only=True)
class CellTable:
    """The cells of one role in a micro-batch; C cells."""

    cell: Tensor  # [C] int64, index into the cells
    owner: Tensor  # [C] int64, index of the comparison
    weight: Tensor  # [C] float
    scores: Mapping[str, Tensor] = field(
        default_factory=dict[str, Tensor]
    )  # "value" or a part -> [C], nan: none

    def part(self, name: str) -> Tensor:
        """[C] the value or a part of it, nan where it is missing."""
        missing = torch.full_like(self.weight, torch.nan)
        return self.scores.get(name, missing)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What the forward read for a micro-batch of `size` comparisons with N cells of at most L tokens.

    Column t belongs to an answer's token t: two answers are aligned by it (OPA-DPO), and spans use it.
    Features that a term `needs`, each [N, L], 0 at padding, at the positions that predict the answer:
    "kl_forward" KL(ref || pi) and "kl_reverse" KL(pi || ref) over the vocabulary, nats; "collision"
    log sum_v pi(v)^2; "entropy" of pi, nats; and [N, L, width] "hidden" and "reference_hidden", last layer.
    """

    size: int
    lengths: Tensor  # [N] int64, scored tokens of each response
    mask: Tensor  # [N, L] bool, True at scored tokens
    tokens: Mapping[str, Tensor]  # view -> [N, L] log-probability of each token, nats; 0 outside the mask
    edges: Mapping[str, EdgeTable]  # edge name -> table; a name that no comparison has is absent
    roles: Mapping[str, CellTable] = field(default_factory=dict[str, CellTable])
    features: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    heads: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    carry: Mapping[str, float] = field(default_factory=dict[str, float])  # running statistics

    @property
    def logps(self) -> Mapping[str, Tensor]:
        """View ("policy", "reference", "behaviour") -> [N], summed over tokens, nats."""
        return {view: tokens.sum(-1) for view, tokens in self.tokens.items()}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A term's result: both [size]; `value` already contains the weight."""

    value: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A number that lives across steps: what terms observed, reduced over the global batch.

    "mean" averages over everything seen so far; "ema" keeps `decay` of the old value each step. Every key
    of a term's `observe` that starts with the name belongs to it ("chosen/captions"). Terms read the values
    of earlier steps in `Reads.carry`.
    """

    name: str
    kind: Literal["mean", "ema"]
    decay: float = 0.99

    def owns(self, key: str) -> bool:
        return key.partition("/")[0] == self.name


def advanced(
    carry: Mapping[str, float], statistics: Iterable[Statistic], observed: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """The running statistics after a step. `observed`: key -> (sum, count) over the global batch.

    A "mean" keeps how many values it holds under "<key>.count"; an "ema" starts at its first batch's mean.
    Raises ValueError for a key that belongs to no statistic.
    """
    known, after = tuple(statistics), dict(carry)
    for key, (total, count) in observed.items():
        owner = next((item for item in known if item.owns(key)), None)
        if owner is None:
            raise ValueError(f"{key!r} was observed, but the terms declare only {[i.name for i in known]}")
        if count > 0 and owner.kind == "mean":
            before = carry.get(key + COUNT, 0.0)
            after[key] = (carry.get(key, 0.0) * before + total) / (before + count)
            after[key + COUNT] = before + count
        elif count > 0:
            mean = total / count
            after[key] = owner.decay * carry.get(key, mean) + (1 - owner.decay) * mean
    return after


@dataclass(frozen=True, kw_only=True)
class Head:
    """A small module on the policy's last hidden states that a term trains: owned, optimised and checkpointed
    by the learner, never sent to generators."""

    name: str
    outputs: int
    hidden: tuple[int, ...] = ()  # widths of hidden layers, ReLU between
    lr: float | None = None  # None: the learner's

    def build(self, width: int) -> nn.Module:
        widths = [width, *self.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], self.outputs))


REFERENCE_FEATURES = frozenset({"kl_forward", "kl_reverse", "reference_hidden"})  # of its own forward
Feature = Literal["kl_forward", "kl_reverse", "collision", "entropy", "hidden", "reference_hidden"]


class Term:
    """Base of all terms: stateless, separable per comparison unless `coupled`.

    `0.2 * Pair("media") + Anchor("text.winner")` builds an `Objective`. A term that is `coupled` gets the
    global batch at once, without features, and is differentiated with respect to the tokens' log-probs. Three
    are: AOT sorts over the batch, KTO takes its baseline and BCO (with `current`) its shift from it.

    What a term reads of scores may be missing, nan: it gives such edges and cells the weight 0.
    """

    @property
    def label(self) -> str:
        """Under which its loss is logged: "pair_text"."""
        on: object = getattr(self, "on", None)
        names = on if isinstance(on, str) else "+".join(sorted(self.edges | self.roles))
        return f"{type(self).__name__.lower()}_{names}"

    @property
    def edges(self) -> frozenset[str]:
        """Names of the edges it reads."""
        return frozenset()

    @property
    def roles(self) -> frozenset[str]:
        """Roles of the cells it reads."""
        return frozenset()

    @property
    def views(self) -> frozenset[str]:
        """Of "policy", "reference", "behaviour"."""
        return frozenset({"policy", "reference"})

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset()

    @property
    def spans(self) -> frozenset[str]:
        """Names of the token spans it reads on its edges."""
        return frozenset()

    @property
    def heads(self) -> tuple[Head, ...]:
        return ()

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return ()

    @property
    def coupled(self) -> bool:
        return False

    @property
    def max_lag(self) -> int | None:
        """Published versions that the samples may be behind; None: as the run allows."""
        return None

    def weight(self, reads: Reads) -> Tensor:
        """[size]; `reads` holds tables, lengths and mask, but no log-probs."""
        raise TypeError(f"{type(self).__name__} does not define its weight")

    def value(self, reads: Reads) -> Tensor:
        """[size], the weight included."""
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def observe(self, reads: Reads) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(sum, count) of what its statistics average, without gradient."""
        return {}

    def __call__(self, reads: Reads) -> Loss:
        return Loss(value=self.value(reads), weight=self.weight(reads))

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

    def __rmul__(self, weight: float) -> Objective:
        return Objective(tuple((float(weight) * own, term) for own, term in self.terms))

    @property
    def edges(self) -> frozenset[str]:
        """Names of the edges that the terms read."""
        return frozenset(name for _, term in self.terms for name in term.edges)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(name for _, term in self.terms for name in term.roles)

    @property
    def spans(self) -> frozenset[str]:
        return frozenset(name for _, term in self.terms for name in term.spans)

    @property
    def views(self) -> frozenset[str]:
        return frozenset(view for _, term in self.terms for view in term.views)

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset(feature for _, term in self.terms for feature in term.needs)

    @property
    def reads_reference(self) -> bool:
        """Whether a term reads a reference at all."""
        return "reference" in self.views or bool(REFERENCE_FEATURES & self.needs)

    @property
    def heads(self) -> tuple[Head, ...]:
        return tuple(dict.fromkeys(head for _, term in self.terms for head in term.heads))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys(item for _, term in self.terms for item in term.statistics))

    @property
    def coupled(self) -> bool:
        return any(term.coupled for _, term in self.terms)

    @property
    def max_lag(self) -> int | None:
        return min((term.max_lag for _, term in self.terms if term.max_lag is not None), default=None)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"weight": weight, "term": repr(term)} for weight, term in self.terms]


def log_ratios(reads: Reads) -> Tensor:
    """log pi - log pi_ref of each token, [N, L], nats; 0 outside the mask."""
    return reads.tokens["policy"] - reads.tokens["reference"]


def log_ratio(reads: Reads) -> Tensor:
    """rho = log pi - log pi_ref of each cell, [N], summed over tokens, nats."""
    return log_ratios(reads).sum(-1)


def per_comparison(values: Tensor, owner: Tensor, size: int) -> Tensor:
    """Sum values of edges or cells into their comparisons, [size]."""
    return values.new_zeros(size).index_add(0, owner, values)


def nothing(reads: Reads) -> Tensor:
    """[size] zeros: of a term whose edges or cells no comparison of the micro-batch has."""
    device = reads.lengths.device
    dtype = next(iter(reads.tokens.values())).dtype if reads.tokens else torch.float32
    return torch.zeros(reads.size, dtype=dtype, device=device)


def side_cells(reads: Reads, on: str) -> CellTable | None:
    """The cells that `on` names: one side of an edge ("text.winner"), or a role ("gold").

    A cell that several edges of the name share counts once, with the largest of their weights. None when no
    comparison has any.
    """
    edge, dot, side = on.partition(".")
    if not dot:
        return reads.roles.get(on)
    table = reads.edges.get(edge)
    if table is None:
        return None
    winner = side == "winner"
    cells, first = unique(table.winner if winner else table.loser)
    count = len(cells)
    owner = table.owner.new_zeros(count).scatter(0, first, table.owner)
    weight = table.weight.new_zeros(count).scatter_reduce(0, first, table.weight, "amax")
    scores = {
        name: sides[not winner].new_zeros(count).scatter(0, first, sides[not winner])
        for name, sides in table.scores.items()
    }
    return CellTable(cell=cells, owner=owner, weight=weight, scores=scores)


def unique(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, sorted, and for each value its place among them."""
    distinct: Any = torch.unique  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return distinct(values, return_inverse=True)


def numbers(values: Tensor) -> list[float]:
    """As Python numbers."""
    return cast(list[float], values.tolist())  # pyright: ignore[reportUnknownMemberType]


def require_side(term: object, on: str) -> None:
    """Raises ValueError unless `on` is a role or one side of an edge."""
    if on.partition(".")[2] not in ("", "winner", "loser") or on.endswith("."):
        raise ValueError(
            f"{type(term).__name__}(on={on!r}): expected a role, '{on.partition('.')[0]}.winner' or "
            f"'{on.partition('.')[0]}.loser'"
        )


def names_of(on: str) -> tuple[frozenset[str], frozenset[str]]:
    """(edges, roles) that `on` reads."""
    edge, dot, _ = on.partition(".")
    return (frozenset({edge}), frozenset()) if dot else (frozenset(), frozenset({on}))
