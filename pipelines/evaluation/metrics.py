"""Hallucination and question-answering measures over held-out items.

- `chair_i`: hallucinated mentions over all mentions; `chair_s`: share of captions with at least one
  (CHAIR, arXiv:1809.02156, equations 1 and 2; from memory);
- `object_recall`: true mentions over objects there; `exact_scene`: share of captions with every object,
  nothing else and no malformed clause; `malformed`: share of captions with a malformed clause;
  `mean_length`: tokens, or words where the records hold no token count;
- `pope.<kind>.accuracy`, `.yes_ratio` (POPE, arXiv:2305.10355, section 4; from memory) and `.malformed`:
  an answer that is neither yes nor no is malformed; it is wrong and is not a yes.

A measure with nothing to count is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from pipelines.evaluation.bootstrap import Floats, interval, ratio, resampled_sums, unpaired
from pipelines.evaluation.records import QUESTION_KINDS, BadRecord, Record, checked

CAPTION_METRICS: Final = ("chair_i", "chair_s", "object_recall", "exact_scene", "malformed", "mean_length")
ANSWER_METRICS: Final = ("accuracy", "yes_ratio", "malformed")


class Table(NamedTuple):
    """The items of one kind: measure m is sum(numerators[:, m]) / sum(denominators[:, m])."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    clusters: tuple[str, ...]  # [items]; items of one cluster are resampled together
    numerators: Floats  # [items, measures]
    denominators: Floats  # [items, measures]

    def estimates(self) -> Floats:
        return ratio(self.numerators.sum(axis=0), self.denominators.sum(axis=0))

    def resampled(self, seed: int) -> Floats:
        """[resamples, measures]; the same seed and clusters draw the same items."""
        clusters, cluster_of = np.unique(np.array(self.clusters), return_inverse=True)
        columns = np.concatenate([self.numerators, self.denominators], axis=1)
        totals = np.zeros((len(clusters), columns.shape[1]))
        np.add.at(totals, cluster_of, columns)
        sums = resampled_sums(totals, seed)
        width = len(self.names)
        return ratio(sums[:, :width], sums[:, width:])


def tables(records: Sequence[Record]) -> list[Table]:
    """One table per kind of item that occurs, captions first. Raises BadRecord."""
    by_kind = checked(records)
    found = [_captions(by_kind["caption"])] if by_kind["caption"] else []
    return found + [_answers(kind, by_kind[kind]) for kind in QUESTION_KINDS if by_kind[kind]]


def heldout(records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """All measures of one model, nested as in summary.json.

    {"chair_i": ..., ..., "pope": {"random": {"accuracy": ..., ...}, ...}, "items": {"caption": 1000, ...},
    "intervals": {"chair_i": [low, high], "pope.random.accuracy": ...}}. Kinds without items are left out.
    """
    result: dict[str, Any] = {}
    intervals: dict[str, list[float] | None] = {}
    items: dict[str, int] = {}
    for table in tables(records):
        estimates, resampled = table.estimates(), table.resampled(seed)
        items[_kind(table)] = len(table.ids)
        for column, name in enumerate(table.names):
            estimate = float(estimates[column])
            _put(result, name, _number(estimate))
            intervals[name] = _listed(interval(estimate, resampled[:, column]))
    return {**result, "items": items, "intervals": intervals}


def compare(before: Sequence[Record], after: Sequence[Record], seed: int = 0) -> dict[str, dict[str, Any]]:
    """After against before on the same items, with paired 95% intervals.

    Returns dotted measure name -> {"before", "after", "difference", "interval"}; `chair_i` also has "ratio"
    (after / before) and "ratio_interval". Raises BadRecord when the two sides hold different items.
    """
    left, right = tables(before), tables(after)
    _same_items(left, right)
    changes: dict[str, dict[str, Any]] = {}
    for old, new in zip(left, right, strict=True):
        olds, news = old.estimates(), new.estimates()
        old_draws, new_draws = old.resampled(seed), new.resampled(seed)
        for column, name in enumerate(old.names):
            first, second = float(olds[column]), float(news[column])
            change: dict[str, Any] = {
                "before": _number(first),
                "after": _number(second),
                "difference": _number(second - first),
                "interval": _listed(interval(second - first, new_draws[:, column] - old_draws[:, column])),
            }
            if name == "chair_i":
                change |= _ratio(first, second, old_draws[:, column], new_draws[:, column])
            changes[name] = change
    return changes


def _ratio(before: float, after: float, old_draws: Floats, new_draws: Floats) -> dict[str, Any]:
    value = float(ratio(np.array(after), np.array(before)))
    return {"ratio": _number(value), "ratio_interval": _listed(interval(value, ratio(new_draws, old_draws)))}


def _captions(records: Sequence[Record]) -> Table:
    with_length = sum("length" in record for record in records)
    if with_length not in (0, len(records)):
        raise BadRecord(f"length: in {with_length} of {len(records)} caption records, expected all or none")
    rows: list[list[float]] = []
    for record in records:
        right, wrong = float(record["right"]), float(record["wrong"])
        missed, malformed = float(record["missed"]), float(record["malformed"])
        length = float(record["length"]) if with_length else float(len(record["text"].split()))
        exact = float(not (wrong or missed or malformed))
        numerators = [wrong, float(wrong > 0), right, exact, float(malformed > 0), length]
        rows.append([*numerators, right + wrong, 1.0, right + missed, 1.0, 1.0, 1.0])
    return _table(CAPTION_METRICS, records, rows)


def _answers(kind: str, records: Sequence[Record]) -> Table:
    rows: list[list[float]] = []
    for record in records:
        right, malformed = float(record["right"]), float(record["malformed"])
        yes = right if record["answer"] == "yes" else float(record["wrong"])
        rows.append([right, yes, malformed, 1.0, 1.0, 1.0])
    return _table(tuple(f"pope.{kind}.{name}" for name in ANSWER_METRICS), records, rows)


def _table(names: tuple[str, ...], records: Sequence[Record], rows: list[list[float]]) -> Table:
    array = np.array(rows, dtype=np.float64)
    ids = tuple(str(record["id"]) for record in records)
    clusters = tuple(str(record.get("cluster", record["id"])) for record in records)
    return Table(names, ids, clusters, array[:, : len(names)], array[:, len(names) :])


def _same_items(left: Sequence[Table], right: Sequence[Table]) -> None:
    before = {f"{_kind(table)} {item}" for table in left for item in table.ids}
    after = {f"{_kind(table)} {item}" for table in right for item in table.ids}
    if before != after:
        raise BadRecord(unpaired(before, after))
    for old, new in zip(left, right, strict=True):
        if old.clusters != new.clusters:
            raise BadRecord(
                f"{_kind(old)} records name other clusters before than after; evaluate both again"
            )


def _kind(table: Table) -> str:
    return table.names[0].split(".")[1] if "." in table.names[0] else "caption"


def _put(tree: dict[str, Any], dotted: str, value: float | None) -> None:
    *path, leaf = dotted.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None else [*bounds]
