"""Steps that choose among scored answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pipelines.programs.sampling import Sample
from pipelines.rewards.gates import Gate, Similar, admitted, distinct
from pipelines.rewards.similarity import token_jaccard
from pipelines.rollout import Draft, Drop, Pipe, Step, Tools
from pipelines.types import Score


@dataclass(frozen=True)
class Choose(Step):
    """Best against worst by score: `best` and `worst`. Missing scores never take part; ties drop the group.

    Among equal scores the earlier response is taken, on both ends. `of`: the set to choose from; `against`:
    the set that the worst comes from, where it is another one.
    """

    min_gap: float = 0.0  # the scores must differ by more than this
    of: str = "y"
    best: str = "w"
    worst: str = "l"
    against: str | None = None

    def __post_init__(self) -> None:
        if not self.min_gap >= 0:
            raise ValueError(f"Choose(min_gap=...): expected at least 0, got {self.min_gap}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.best, self.worst})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        highs = known_scores(draft, self.of)
        lows = known_scores(draft, self.against or self.of)
        if not highs or len(highs | lows) < 2:
            few = len({*draft.members(self.of), *draft.members(self.against or self.of)}) < 2
            raise Drop("too_few_responses" if few else "missing_score")
        if not lows:
            raise Drop("missing_score")
        best = max(highs, key=lambda i: highs[i])
        worst = min(lows, key=lambda i: lows[i])
        if highs[best] - lows[worst] <= self.min_gap:
            raise Drop("tie")
        return replace(draft, chosen={**draft.chosen, self.best: best, self.worst: worst})


@dataclass(frozen=True)
class Ranked(Step):
    """Several answers by rank: the first name is the best, the last the worst, the others evenly between.

    All but the first score strictly below it; among equal scores the earlier response ranks higher. Curri-DPO
    pairs the best of four with the worst, the third and the second (third-party note).
    """

    of: str = "y"
    names: tuple[str, ...] = ("a", "b", "c", "d")

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"Ranked(names=...): expected at least 2 names, got {self.names}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset(self.names)

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = known_scores(draft, self.of)
        rest = len(self.names) - 1
        if len(values) <= rest:
            few = len(draft.members(self.of)) <= rest
            raise Drop("too_few_responses" if few else "missing_score")
        ranked = sorted(values, key=lambda i: (-values[i], i))
        lower = [i for i in ranked if values[i] < values[ranked[0]]]
        if len(lower) < rest:
            raise Drop("tie")
        steps = [round(k * (len(lower) - 1) / max(rest - 1, 1)) for k in range(rest)]
        picked = (ranked[0], *(lower[k] for k in (steps if rest > 1 else [len(lower) - 1])))
        return replace(draft, chosen={**draft.chosen, **dict(zip(self.names, picked, strict=True))})


@dataclass(frozen=True)
class Label(Step):
    """Unpaired labels: answers with at least `threshold` are `good`, the others `bad`; a set may be empty.

    None takes the mean of the group's scores. Answers without a score are in neither set.
    """

    threshold: float | None = None
    of: str = "y"
    good: str = "good"
    bad: str = "bad"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.good, self.bad})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = known_scores(draft, self.of)
        if not values:
            raise Drop("missing_score")
        least = fmean(values.values()) if self.threshold is None else self.threshold
        good = tuple(i for i, value in values.items() if value >= least)
        bad = tuple(i for i in values if i not in good)
        return replace(draft, sets={**draft.sets, self.good: good, self.bad: bad})


@dataclass(frozen=True)
class Kept(Step):
    """The answers with at least this score, as a set; drops "none_good_enough" where there are none.

    `best_only`: no more than the best one. `some_below`: the group is dropped as "all_good_enough" unless
    another answer failed.
    """

    least: float
    of: str = "y"
    name: str = "kept"
    best_only: bool = False
    some_below: bool = False

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = known_scores(draft, self.of)
        if not values:
            raise Drop("missing_score")
        kept = [i for i, value in values.items() if value >= self.least]
        if not kept:
            raise Drop("none_good_enough")
        if self.some_below and len(kept) == len(values):
            raise Drop("all_good_enough")
        if self.best_only:
            kept = [max(kept, key=lambda i: values[i])]
        return replace(draft, sets={**draft.sets, self.name: tuple(kept)})


@dataclass(frozen=True)
class Gated(Step):
    """Drops the group, for the reason of the first closed gate, unless its chosen pair passes all of them."""

    gates: tuple[Gate, ...]
    best: str = "w"
    worst: str = "l"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        winner, loser = (draft.members(name)[0] for name in (self.best, self.worst))
        scores = [score or Score(value=None, missing="not_judged") for score in draft.scores]
        for gate in self.gates:
            if reason := gate(draft.rollouts, scores, winner, loser):
                raise Drop(reason)
        return draft


@dataclass(frozen=True)
class Pairs(Step):
    """Up to `most` pairs that pass every gate, i-th best with i-th worst: the sets `best` and `worst`.

    Read by `comparing.several.Each`. Drops for the commonest reason when no pair passes.
    """

    gates: tuple[Gate, ...]
    most: int = 1
    of: str = "y"
    best: str = "w"
    worst: str = "l"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.best, self.worst})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        members = draft.members(self.of)
        scores = [draft.scores[i] or Score(value=None, missing="not_judged") for i in members]
        pairs, refused = admitted([draft.rollouts[i] for i in members], scores, self.gates, self.most)
        if not pairs:
            raise Drop(refused.most_common(1)[0][0])
        winners = [members[winner] for winner, _ in pairs]
        losers = [members[loser] for _, loser in pairs]
        return paired(draft, self.best, self.worst, winners, losers)


@dataclass(frozen=True)
class NeedsParts(Step):
    """Raises ValueError when a score of the set lacks a part that the method reads, naming what there is."""

    parts: tuple[str, ...]
    of: str = "y"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        for index in draft.members(self.of):
            score = draft.scores[index]
            if score is None or score.value is None:
                continue
            if lacking := [part for part in self.parts if part not in score.parts]:
                raise ValueError(
                    f"the method reads the score parts {lacking}, but the reward gives only "
                    f"{sorted(score.parts)}; choose a reward that has them"
                )
        return draft


@dataclass(frozen=True)
class Distinct(Step):
    """The answers of a set that differ, as the set `name`, or in place of the set itself.

    One that is at least `most` like an earlier one is left out; by default that is one with the same words.
    Drops "too_similar" when fewer than two remain.
    """

    of: str = "y"
    most: float = 1.0
    name: str | None = None
    measure: Similar = token_jaccard

    def __post_init__(self) -> None:
        if not 0 < self.most <= 1:
            raise ValueError(f"Distinct(most=...): expected above 0 and at most 1, got {self.most}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name or self.of})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        members = draft.members(self.of)
        kept = distinct([draft.rollouts[i] for i in members], self.most, self.measure)
        if len(kept) < 2:
            raise Drop("too_few_responses" if len(members) < 2 else "too_similar")
        return replace(
            draft, sets={**draft.sets, self.name or self.of: tuple(members[position] for position in kept)}
        )


def paired(draft: Draft, best: str, worst: str, winners: Sequence[int], losers: Sequence[int]) -> Draft:
    """The draft with two sets of equal length; the first of each is chosen under the set's name as well."""
    sets = {**draft.sets, best: tuple(winners), worst: tuple(losers)}
    return replace(draft, sets=sets, chosen={**draft.chosen, best: winners[0], worst: losers[0]})


def known_scores(draft: Draft, name: str) -> dict[int, float]:
    """Index of each rollout of a set that has a score -> the score, in the order of sampling."""
    scores = {i: draft.scores[i] for i in draft.members(name)}
    return {i: s.value for i, s in scores.items() if s is not None and s.value is not None}


def best_and_worst(samples: int, min_gap: float = 0.0) -> Pipe:
    """The usual start of a program. Raises ValueError for fewer than 2 samples: they could never differ."""
    if samples < 2:
        raise ValueError(
            f"samples: expected at least 2, since the best is compared with the worst, got {samples}"
        )
    return Sample(samples) >> Choose(min_gap)


@dataclass(frozen=True)
class Unlike(Step):
    """Drops "same_response" when two responses have the same tokens."""

    first: str = "w"
    second: str = "l"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if draft.rollout(self.first).response.tokens == draft.rollout(self.second).response.tokens:
            raise Drop("same_response")
        return draft
