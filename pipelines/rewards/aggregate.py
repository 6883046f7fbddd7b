"""Many rewards into one: sums, means, votes, directions, ensembles.

Every combinator judges the whole group with each component and keeps the components as parts of the score.
A component that is missing never counts as 0: it is left out and the others are reweighted, and what is left
of the total weight becomes the score's confidence. A score without any component is missing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.rewards.base import AnyReward, judge_group, missing
from pipelines.rewards.clock import Clock, Number, number
from pipelines.types import MediaTable, Rollout, Score

Table = list[dict[str, Score]]  # for each rollout: component -> score


async def judged(
    components: Mapping[str, AnyReward], rollouts: Sequence[Rollout], media: MediaTable
) -> Table:
    """Every component's score of every rollout."""
    columns = await asyncio.gather(*(judge_group(r, rollouts, media) for r in components.values()))
    return [dict(zip(components, row, strict=True)) for row in zip(*columns, strict=True)]


def merged_parts(row: Mapping[str, Score]) -> dict[str, float]:
    """The components' own parts, those that several have as "component/part", and each component's value."""
    seen = Counter(name for score in row.values() for name in score.parts)
    parts: dict[str, float] = {}
    for component, score in row.items():
        for name, value in score.parts.items():
            clash = seen[name] > 1 or name in row
            parts[f"{component}/{name}" if clash else name] = value
        if score.value is not None:
            parts[component] = score.value
    return parts


def why(row: Mapping[str, Score]) -> str:
    """The reasons of all missing components in one line."""
    return "; ".join(f"{name}: {score.missing}" for name, score in row.items() if score.missing)


def _present(row: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in row.items() if score.value is not None}


def _trust(row: Mapping[str, Score], weights: Mapping[str, float]) -> float:
    """Weighted mean of the components' confidence, 0 for those that are missing."""
    total = sum(abs(weights[name]) for name in row)
    held = sum(abs(weights[name]) * score.confidence for name, score in row.items() if score.missing is None)
    return held / total


@dataclass(frozen=True)
class WeightedSum:
    """sum_i w_i r_i, less `unfinished` once when the answer was cut by the length limit.

    Where components are missing the sum over the others is scaled by the share of weight that they lack, so
    that answers stay comparable. (TRL's online DPO takes the plain nansum; code read.) A component of weight
    0 is only watched: it becomes a part. Raises ValueError without weights, or for unknown names.
    """

    components: Mapping[str, AnyReward]
    weights: Mapping[str, Number] = field(default_factory=dict[str, Number])  # default: 1 each
    unfinished: float = 0.0  # reward units

    def __post_init__(self) -> None:
        if not self.components or set(self.weights) - set(self.components):
            raise ValueError(
                f"WeightedSum: expected weights of some of the components {sorted(self.components)}, got "
                f"{sorted(self.weights)}"
            )
        fixed = [w for w in self._all().values() if not isinstance(w, Clock)]
        if len(fixed) == len(self.components) and not any(fixed):
            raise ValueError("WeightedSum: every weight is 0, so nothing would be judged")

    def _all(self) -> dict[str, Number]:
        return {name: self.weights.get(name, 1.0) for name in self.components}

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        weights = {name: number(weight) for name, weight in self._all().items()}
        table = await judged(self.components, rollouts, media)
        return [self._score(row, weights, r) for row, r in zip(table, rollouts, strict=True)]

    def _score(self, row: Mapping[str, Score], weights: Mapping[str, float], rollout: Rollout) -> Score:
        counted = {name: score for name, score in row.items() if weights[name]}
        values = _present(counted)
        if not values:
            return missing(why(counted))
        whole = sum(abs(weights[name]) for name in counted)
        held = sum(abs(weights[name]) for name in values)
        value = sum(weights[name] * v for name, v in values.items()) * whole / held
        parts = merged_parts(row)
        if self.unfinished and not rollout.response.finished:
            value -= self.unfinished
            parts["unfinished"] = -self.unfinished
        return Score(value=value, parts=parts, confidence=_trust(counted, weights))


@dataclass(frozen=True)
class Harmonic:
    """Weighted harmonic mean sum w / sum (w / r) of rewards that are not negative: the weakest one decides.

    It is 0 when a component is 0, and missing when one is negative.
    """

    components: Mapping[str, AnyReward]
    weights: Mapping[str, float] = field(default_factory=dict[str, float])  # positive; default: 1 each

    def __post_init__(self) -> None:
        if not self.components or any(not w > 0 for w in self.weights.values()):
            raise ValueError(f"Harmonic: expected components and positive weights, got {dict(self.weights)}")

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        weights = {name: self.weights.get(name, 1.0) for name in self.components}
        return [self._score(row, weights) for row in await judged(self.components, rollouts, media)]

    def _score(self, row: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
        values = _present(row)
        if not values:
            return missing(why(row))
        if negative := [name for name, value in values.items() if value < 0]:
            return missing(f"harmonic_of_a_negative: {negative[0]} = {values[negative[0]]:g}")
        if min(values.values()) == 0:
            value = 0.0
        else:
            value = sum(weights[n] for n in values) / sum(weights[n] / v for n, v in values.items())
        return Score(value=value, parts=merged_parts(row), confidence=_trust(row, weights))


@dataclass(frozen=True)
class Direction:
    """v . r: a vector reward, read from the parts of one reward, seen along a unit vector v.

    DPA (arXiv 2402.18571; README read, loop from memory): r holds the attributes of a multi-head reward
    model, and a user is a direction, in two dimensions v = (cos theta, sin theta). A part that v uses and a
    score lacks makes it missing: without it there is no such direction.

    Raises ValueError unless v has length 1.
    """

    reward: AnyReward
    direction: Mapping[str, float]  # part -> coordinate of v

    def __post_init__(self) -> None:
        length = math.sqrt(sum(v * v for v in self.direction.values()))
        if abs(length - 1) > 1e-6:
            raise ValueError(f"Direction: expected a unit vector, got length {length:g}: {self.direction}")

    @classmethod
    def of_angle(cls, reward: AnyReward, first: str, second: str, degrees: float) -> Direction:
        angle = math.radians(degrees)
        return cls(reward, {first: math.cos(angle), second: math.sin(angle)})

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        return [self._score(score) for score in await judge_group(self.reward, rollouts, media)]

    def _score(self, score: Score) -> Score:
        used = {name: v for name, v in self.direction.items() if v}
        lacking = [name for name in used if name not in score.parts]
        if score.missing is not None or lacking:
            return missing(score.missing or f"no_such_part: {lacking[0]}")
        value = sum(v * score.parts[name] for name, v in used.items())
        return Score(value=value, parts=score.parts, confidence=score.confidence)


@dataclass(frozen=True)
class Ensemble:
    """mean_i r_i - pessimism * std_i r_i over members on one scale; `disagreement` is that deviation.

    Confidence is 1 / (1 + std / scale), times the share of members that answered. Fewer answers than
    `quorum` make the score missing: the disagreement of one member with itself says nothing.
    """

    members: Mapping[str, AnyReward]
    pessimism: float = 0.0
    scale: float = 1.0  # a disagreement of this many reward units halves the confidence
    quorum: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.quorum <= len(self.members) and self.scale > 0 and self.pessimism >= 0):
            raise ValueError(
                f"Ensemble: expected 1 <= quorum <= members, scale > 0 and pessimism >= 0, got quorum "
                f"{self.quorum} of {len(self.members)}, scale {self.scale:g}, pessimism {self.pessimism:g}"
            )

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        return [self._score(row) for row in await judged(self.members, rollouts, media)]

    def _score(self, row: Mapping[str, Score]) -> Score:
        values = list(_present(row).values())
        if len(values) < self.quorum:
            return missing(f"no_quorum: {len(values)} of {len(row)} members answered; {why(row)}")
        deviation = float(np.std(values))
        parts = merged_parts(row) | {"disagreement": deviation}
        trust = len(values) / len(row) / (1 + deviation / self.scale)
        return Score(value=float(np.mean(values)) - self.pessimism * deviation, parts=parts, confidence=trust)


@dataclass(frozen=True)
class Vote:
    """Each voter prefers, of any two answers, the one it scores higher; the value is the share of duels won.

    value_i = mean over voters and other answers j of 1, 1/2 (tie) or 0. Voters need no common scale. The
    confidence is their agreement, mean_j |2 p_ij - 1| with p_ij the share of voters for i: 1 where they are
    unanimous, 0 where they are split. CAREVL (arXiv 2503.06260; abstract read, thresholds not seen) trains
    directly on what text reward models agree on and treats the rest apart: put `Confident` behind this.
    """

    voters: Mapping[str, AnyReward]

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        table = await judged(self.voters, rollouts, media)
        return [self._score(i, table) for i in range(len(table))]

    def _score(self, i: int, table: Table) -> Score:
        shares: list[float] = []
        for j in range(len(table)):
            votes = [] if i == j else _votes(table[i], table[j])
            shares += [sum(votes) / len(votes)] if votes else []
        if not shares:
            return missing(f"no_votes: {why(table[i]) or 'nothing to compare with'}")
        agreement = sum(abs(2 * share - 1) for share in shares) / len(shares)
        return Score(
            value=sum(shares) / len(shares),
            parts=merged_parts(table[i]) | {"agreement": agreement},
            confidence=agreement,
        )


def _votes(own: Mapping[str, Score], other: Mapping[str, Score]) -> list[float]:
    pairs = ((own[name].value, other[name].value) for name in own)
    return [0.5 * (1 + (a > b) - (a < b)) for a, b in pairs if a is not None and b is not None]
