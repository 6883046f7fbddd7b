"""The promotion gate: a candidate against the promoted version on the same held-out items.

Every condition must hold, each judged by the unfavourable end of its 95% interval. A bad candidate has to
pass the very condition that it fails, so conditions that are joined by "and" need no correction for their
number (intersection-union test, Berger, 1982; from memory): each errs in at most 2.5% of such cases.

Intervals of shares are Wilson's (1927; from memory), which keep a width where all items agree. A win counts
1, a tie one half: a mean in [0, 1], whose variance is at most that of a share, so that Wilson's interval is
cautious there. The difference of two shares is Newcombe's square-and-add interval (1998, method 10; from
memory), which takes the sides for independent: cautious for answers to the same prompts. Ratios of sums are a
paired bootstrap (`pipelines.evaluation.bootstrap`). Items of one cluster count as one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pipelines import settings_files
from pipelines.evaluation.bootstrap import LEVEL, RESAMPLES, Floats, Interval, interval, ratio, resampled_sums
from pipelines.evaluation.bootstrap import unpaired as unpaired_message
from pipelines.evaluation.records import QUESTION_KINDS
from pipelines.settings import Section
from pipelines.settings_errors import SettingsError

Z = 1.959964  # of a two-sided 95% interval
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
AboveOne = Annotated[float, Field(ge=1.0)]

REFUSAL = re.compile(
    r"^\W*(?:(?:i['\u2019]?\s*a?m\s+)?(?:very\s+|so\s+)?sorry\b|unfortunately\b|as an ai\b"
    r"|i\s+(?:can\s?not|can['\u2019]?t|won['\u2019]?t|will not|am not able|am unable|must decline)\b)",
    re.IGNORECASE,
)

Record = Mapping[str, Any]


class Alone(Section):
    """What every version must satisfy, the first one as well; null: not asked for."""

    items: Annotated[int, Field(gt=0)] = 200  # held-out items that are answered, at least
    missing: Share | None = 0.01  # share of answers that the reward could not score, at most
    hallucination: Share | None = None  # CHAIR-i, at most; None: only the comparison counts
    refusals: Share | None = 0.1  # share of refusals and empty answers, at most


class Against(Section):
    """What a candidate must satisfy beside the promoted version; null: not asked for."""

    win_rate: Share | None = 0.5  # wins plus half the ties, at least: it is better, with 97.5% confidence
    hallucination: NonNegative | None = 0.01  # rise of CHAIR-i, at most
    length: AboveOne | None = 2.0  # mean answer this many times as long, or as short, at most
    refusals: NonNegative | None = 0.02  # rise of the share of refusals, at most
    text: AboveOne | None = 1.25  # loss on reference text without any picture, relative to before, at most


class Gate(Section):
    """When a candidate is promoted."""

    alone: Alone = Alone()
    against: Against = Against()
    seed: Annotated[int, Field(ge=0)] = 0  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition: `low` and `high` bound `value`; the condition binds the end that could break it."""

    name: str
    value: float | None  # None: there was nothing to measure it on, so it does not hold
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    items: int  # independent items that it was measured on
    holds: bool

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return f"{self.name}: could not be measured on these data; null in the gate goes without"
        sides = ((">=", self.at_least), ("<=", self.at_most))
        asked = " and ".join(f"{sign} {limit:g}" for sign, limit in sides if limit is not None)
        shown = f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.name}: {shown}, asked {asked}: {'holds' if self.holds else 'does not hold'}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate says, with everything that it was computed from but the answers."""

    holds: bool
    kind: Literal["first", "compared"]
    checks: tuple[Check, ...]
    items: int
    clusters: int
    seed: int
    resamples: int
    level: float
    gate: Mapping[str, Any]

    @property
    def why(self) -> str:
        failed = [str(check) for check in self.checks if not check.holds]
        if failed:
            return "; ".join(failed)
        return "the first version" if self.kind == "first" else "every condition of the gate holds"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "why": self.why}


def load_gate(path: Path | None) -> Gate:
    """The gate of a YAML file; None: the defaults. Raises SettingsError with every problem found."""
    if path is None:
        return Gate()
    try:
        return settings_files.read(path, "sections such as 'against:'").validated(Gate)
    except OSError as error:
        raise SettingsError(f"{path}: the gate cannot be read: {error.strerror}") from None


def is_refusal(text: str) -> bool:
    """Whether an answer is empty or begins as English refusals do. A rule of thumb: see `REFUSAL`."""
    return not text.strip() or REFUSAL.match(text) is not None


def compare(candidate: Sequence[Record], current: Sequence[Record] | None, gate: Gate) -> Decision:
    """Judge a candidate's held-out records, beside the promoted version's where there is one.

    A record has `id`, `kind` and, of kind "text", `nats` (loss of a reference text); of any other kind the
    answer's `text`, its `value` (None: missing) and, where the verifier counts them, `right` and `wrong`
    mentions; optionally its `cluster`. Raises ValueError when both sides do not hold the same items.
    """
    sides = Sides(candidate, current, gate.seed)
    checks = [*_alone(sides, gate.alone), *(_against(sides, gate.against) if current is not None else ())]
    return Decision(
        holds=all(check.holds for check in checks),
        kind="first" if current is None else "compared",
        checks=tuple(checks),
        items=len(sides.answers),
        clusters=len({_cluster(record) for record in sides.answers}),
        seed=gate.seed,
        resamples=RESAMPLES,
        level=LEVEL,
        gate=gate.model_dump(mode="json"),
    )


class Sides:
    """The records of both models, paired by kind and id."""

    def __init__(self, candidate: Sequence[Record], current: Sequence[Record] | None, seed: int) -> None:
        new, old = _by_item(candidate), None if current is None else _by_item(current)
        if old is not None and new.keys() != old.keys():
            raise ValueError(unpaired_message({" ".join(k) for k in old}, {" ".join(k) for k in new}))
        pairs = [(new[key], old[key] if old is not None else new[key]) for key in sorted(new)]
        self.pairs = [pair for pair in pairs if pair[0]["kind"] != "text"]
        self.texts = [pair for pair in pairs if pair[0]["kind"] == "text"]
        self.answers = [record for record, _ in self.pairs]
        self.seed = seed

    def sums(self, pairs: Sequence[tuple[Record, Record]], columns: Callable[[Record], tuple[float, float]]):
        """Both sides' (numerator, denominator), summed per cluster: [clusters, 4], the candidate's first."""
        found: dict[str, Floats] = {}
        for new, old in pairs:
            row = np.array([*columns(new), *columns(old)], dtype=np.float64)
            found[_cluster(new)] = found.get(_cluster(new), np.zeros(4)) + row
        return np.stack([found[name] for name in sorted(found)]) if found else np.zeros((0, 4))


def _alone(sides: Sides, asked: Alone) -> list[Check]:
    answers, n = sides.answers, len(sides.answers)
    checks = [_check("items", n, Interval(n, n), n, at_least=asked.items)]
    if asked.missing is not None:
        missing = sum(record["value"] is None for record in answers) / n if n else math.nan
        checks.append(_check("missing", missing, Interval(missing, missing), n, at_most=asked.missing))
    if asked.hallucination is not None:
        table = sides.sums([pair for pair in sides.pairs if _counted(pair)], _chair)
        checks.append(_ratio_check("hallucination", sides, table, lambda new, _: new, asked.hallucination))
    if asked.refusals is not None:
        share, count = _share([(_cluster(r), float(is_refusal(r["text"]))) for r in answers])
        checks.append(_check("refusals", share, wilson(share, count), count, at_most=asked.refusals))
    return checks


def _against(sides: Sides, asked: Against) -> list[Check]:
    checks: list[Check] = []
    if asked.win_rate is not None:
        scored = [(new, old) for new, old in sides.pairs if None not in (new["value"], old["value"])]
        wins = [(_cluster(new), (1 + np.sign(new["value"] - old["value"])) / 2) for new, old in scored]
        share, count = _share(wins)
        checks.append(_check("win rate", share, wilson(share, count), count, at_least=asked.win_rate))
    if asked.hallucination is not None:
        table = sides.sums([pair for pair in sides.pairs if _counted(pair)], _chair)
        checks.append(_ratio_check("rise of hallucination", sides, table, np.subtract, asked.hallucination))
    if asked.length is not None:
        spoken = [pair for pair in sides.pairs if pair[0]["kind"] not in QUESTION_KINDS]
        table = sides.sums(spoken, lambda record: (len(record["text"].split()), 1))
        limits = (1 / asked.length, asked.length)
        checks.append(_ratio_check("length ratio", sides, table, ratio, limits[1], at_least=limits[0]))
    if asked.refusals is not None:
        checks.append(_refusal_check(sides, asked.refusals))
    if asked.text is not None:
        table = sides.sums(sides.texts, lambda record: (record["nats"], 1))
        checks.append(_ratio_check("text loss ratio", sides, table, ratio, asked.text))
    return checks


def _refusal_check(sides: Sides, limit: float) -> Check:
    new, count = _share([(_cluster(r), float(is_refusal(r["text"]))) for r, _ in sides.pairs])
    old, _ = _share([(_cluster(r), float(is_refusal(r["text"]))) for _, r in sides.pairs])
    return _check("rise of refusals", new - old, difference(new, old, count), count, at_most=limit)


def _ratio_check(
    name: str,
    sides: Sides,
    table: Floats,
    combine: Callable[[Floats, Floats], Floats],
    at_most: float,
    at_least: float | None = None,
) -> Check:
    """A condition on `combine(candidate's ratio of sums, current's)`, with a bootstrap over clusters."""
    if not len(table):
        return _check(name, math.nan, None, 0, at_least=at_least, at_most=at_most)
    draws = np.concatenate([table.sum(axis=0, keepdims=True), resampled_sums(table, sides.seed)])
    values = combine(ratio(draws[:, 0], draws[:, 1]), ratio(draws[:, 2], draws[:, 3]))
    found = interval(float(values[0]), values[1:])
    return _check(name, float(values[0]), found, len(table), at_least=at_least, at_most=at_most)


def _check(
    name: str,
    value: float,
    bounds: Interval | None,
    items: int,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Check:
    if bounds is None or not math.isfinite(value):
        holds, known, low, high = False, None, None, None
    else:
        known, (low, high) = float(value), bounds
        holds = (at_least is None or low >= at_least) and (at_most is None or high <= at_most)
    return Check(
        name=name,
        value=known,
        low=low,
        high=high,
        at_least=at_least,
        at_most=at_most,
        items=items,
        holds=holds,
    )


def wilson(share: float, n: int, z: float = Z) -> Interval | None:
    """Score interval of a share, or of a mean of values in [0, 1], of n independent items."""
    if not n:
        return None
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return Interval(min(max(0.0, low), share), max(min(1.0, high), share))


def difference(new: float, old: float, n: int) -> Interval | None:
    """Interval of the difference of two shares of n items each."""
    first, second = wilson(new, n), wilson(old, n)
    if first is None or second is None:
        return None
    down = math.hypot(new - first.low, second.high - old)
    up = math.hypot(first.high - new, old - second.low)
    return Interval(new - old - down, new - old + up)


def _share(values: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Mean over clusters of their means, and how many clusters there are."""
    clusters: dict[str, list[float]] = {}
    for cluster, value in values:
        clusters.setdefault(cluster, []).append(float(value))
    means = [sum(found) / len(found) for found in clusters.values()]
    return (sum(means) / len(means) if means else math.nan), len(means)


def _by_item(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    found = {(str(record["kind"]), str(record["id"])): record for record in records}
    if len(found) != len(records):
        raise ValueError("an item occurs twice among the held-out records; every item is answered once")
    return found


def _cluster(record: Record) -> str:
    return str(record.get("cluster", record["id"]))


def _counted(pair: tuple[Record, Record]) -> bool:
    return all("wrong" in record and record["kind"] not in QUESTION_KINDS for record in pair)


def _chair(record: Record) -> tuple[float, float]:
    return float(record["wrong"]), float(record["right"]) + float(record["wrong"])
