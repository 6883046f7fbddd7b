"""The canary's gate: does the canary do worse than the stable version, judged while the answers come in?

Looking again and again at a test made for one look finds a difference sooner or later where there is none. So
each measure is looked at only when the canary has N, 1.5 N, 2.25 N, ... of its samples, and look k may err
with the probability alpha / (measures * k * (k + 1)). These add up to alpha: a canary that is as good as the
stable version is taken back with at most that probability, however long it runs (alpha spending, Lan and
DeMets, 1983, with the union bound in place of a joint distribution; from memory).

Shares are compared by Fisher's exact test, one-sided, which holds at any counts; ratings of blind comparisons
and errors beyond an absolute limit by the exact binomial test; lengths by the rank-sum test with its normal
approximation and correction for ties (Mann and Whitney, 1947; from memory), which at such counts is close but
not exact. A difference must also be large enough to matter. Samples are taken to be independent: many answers
to one client count as many. Latency is not judged, since the slots differ in replicas and load.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from scipy import stats

from pipelines.settings import Section
from serving.wire import SLOTS

GROWTH = 1.5
Margin = Annotated[float, Field(ge=0.0, le=1.0)] | None  # null: this measure is not judged


class CanaryRules(Section):
    """When a canary is taken back. A margin: how much worse than the stable version may be tolerated."""

    alpha: Annotated[float, Field(gt=0.0, le=0.5)] = 0.01  # chance to take back a canary that is as good
    first_look: Annotated[int, Field(ge=5)] = 20  # samples of both slots
    errors: Margin = 0.01  # share of 5xx answers
    errors_at_all: Margin = 0.2  # share of 5xx answers, whatever the stable version does
    empty: Margin = 0.02  # share of answers without a token
    cut: Margin = 0.1  # share of answers that ended at the length limit
    refusals: Margin = 0.02
    disliked: Margin = 0.05  # share of ratings that are bad
    lost: Margin = 0.05  # of blind comparisons with the stable version, beyond one half
    length: Annotated[float, Field(ge=1.0)] | None = 1.5  # mean answer this many times as long, or as short


SHARES = ("errors", "empty", "cut", "refusals", "disliked")


class Tally:
    """Samples of one slot: measure -> value -> how many."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}
        self._n: Counter[str] = Counter()

    def add(self, measure: str, value: int) -> None:
        self._counts.setdefault(measure, Counter())[value] += 1
        self._n[measure] += 1

    def of(self, measure: str) -> Counter[int]:
        return self._counts.get(measure, Counter())

    def n(self, measure: str) -> int:
        return self._n[measure]

    def mean(self, measure: str) -> float:
        return sum(value * count for value, count in self.of(measure).items()) / self.n(measure)


class CanaryGate:
    """Judges one canary against the stable version that runs beside it; a new pair needs a new gate.

    Pure: samples in, a verdict out, which once given stays.
    """

    def __init__(self, rules: CanaryRules) -> None:
        self.rules = rules
        self._tallies = {slot: Tally() for slot in SLOTS}
        limits = {name: getattr(rules, name) for name in (*SHARES, "errors_at_all", "lost", "length")}
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        self._looks = dict.fromkeys(self._limits, 0)
        self._verdict: str | None = None

    def add(self, slot: str, sample: Mapping[str, Any]) -> None:
        """A live measurement of a slot; what the sample does not hold is not counted.

        `status`: HTTP status; `tokens` of the answer and `finish`, reasons why its choices ended, of answers
        with status 200; `refused`: bool; `rating`: -1 or 1; `won`: whether the canary's answer was preferred
        to the stable version's. Raises KeyError for a slot that there is not.
        """
        tally = self._tallies[slot]
        for measure, value in _measures(sample):
            tally.add(measure, value)

    def verdict(self) -> str | None:
        """None, or "rollback: " and what broke the gate."""
        for measure in self._limits if self._verdict is None else ():
            if (found := self._look(measure)) is not None:
                self._verdict = f"rollback: {found}"
                break
        return self._verdict

    def _look(self, measure: str) -> str | None:
        """Look at a measure if a look is due."""
        source = "errors" if measure == "errors_at_all" else measure
        n = self._tallies["canary"].n(source)
        due = self.rules.first_look * GROWTH ** self._looks[measure]
        beside = self._tallies["stable"].n(source)
        alone = measure in ("errors_at_all", "lost")
        if n < due or (beside < self.rules.first_look and not alone):
            return None
        self._looks[measure] += 1
        k = self._looks[measure]
        level = self.rules.alpha / (len(self._limits) * k * (k + 1))
        test = {"errors_at_all": self._errors_at_all, "lost": self._lost, "length": self._length}
        p, shown = test[measure]() if measure in test else self._worse(measure)
        if p > level:
            return None
        return f"{measure.replace('_', ' ')}: {shown} (p = {p:.2g} at look {k}, level {level:.2g})"

    def _worse(self, measure: str) -> tuple[float, str]:
        canary, stable = self._tallies["canary"], self._tallies["stable"]
        bad, n = canary.of(measure)[1], canary.n(measure)
        other_bad, m = stable.of(measure)[1], stable.n(measure)
        shown = f"{bad} of {n}, beside {other_bad} of {m} of the stable version"
        if bad / n - other_bad / m <= self._limits[measure]:
            return 1.0, shown
        return float(stats.hypergeom.sf(bad - 1, n + m, bad + other_bad, n)), shown

    def _errors_at_all(self) -> tuple[float, str]:
        tally = self._tallies["canary"]
        bad, n, limit = tally.of("errors")[1], tally.n("errors"), self._limits["errors_at_all"]
        return float(stats.binom.sf(bad - 1, n, limit)), f"{bad} of {n}, at most {limit:.0%} are tolerated"

    def _lost(self) -> tuple[float, str]:
        tally = self._tallies["canary"]
        bad, n, limit = tally.of("lost")[1], tally.n("lost"), self._limits["lost"]
        p = float(stats.binom.sf(bad - 1, n, 0.5)) if bad / n - 0.5 > limit else 1.0
        return p, f"{bad} of {n} blind comparisons"

    def _length(self) -> tuple[float, str]:
        canary, stable = self._tallies["canary"], self._tallies["stable"]
        new, old, limit = canary.mean("length"), stable.mean("length"), self._limits["length"]
        shown = f"{new:.1f} tokens on average, beside {old:.1f} of the stable version"
        if new <= limit * old and old <= limit * new:
            return 1.0, shown
        return rank_sum(canary.of("length"), stable.of("length")), shown


def _measures(sample: Mapping[str, Any]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    status = sample.get("status")
    if status is not None:
        found.append(("errors", int(status >= 500)))
    if status == 200 and sample.get("tokens") is not None:
        found += [("empty", int(sample["tokens"] == 0)), ("length", int(sample["tokens"]))]
    if status == 200 and sample.get("finish"):
        found.append(("cut", int("length" in sample["finish"])))
    if sample.get("refused") is not None:
        found.append(("refusals", int(sample["refused"])))
    if sample.get("rating") is not None:
        found.append(("disliked", int(sample["rating"] < 0)))
    if sample.get("won") is not None:
        found.append(("lost", int(not sample["won"])))
    return found


def rank_sum(first: Mapping[int, int], second: Mapping[int, int]) -> float:
    """Two-sided p-value that both histograms (value -> count) are of one distribution; normal approximation
    of the rank sum with ties."""
    n, m = sum(first.values()), sum(second.values())
    below, ranks, ties = 0, 0.0, 0
    for value in sorted({*first, *second}):
        together = first.get(value, 0) + second.get(value, 0)
        ranks += first.get(value, 0) * (below + (together + 1) / 2)
        ties += together**3 - together
        below += together
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0  # all values are equal
    return math.erfc(abs(ranks - n * (total + 1) / 2) / math.sqrt(2 * variance))
