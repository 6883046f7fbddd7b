"""Percentile bootstrap over items (Efron and Tibshirani, 1993, chapter 13; from memory), seeded.

Every measure here is a ratio of two sums over items (a mean has the denominator 1 for every item). One
resample is a vector of multinomial counts, so that all measures of all resamples are two matrix products,
and *paired* differences come from the same counts on both sides.

An interval over items says how the measure would vary with other held-out items of the same kind. It does not
hold the spread over training seeds. Where all items agree it has no width, which is no proof of certainty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
_CELLS: Final = 2_000_000  # counts held at once: 16 MB


class Interval(NamedTuple):
    low: float
    high: float


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element-wise quotient; NaN where there was nothing to count (a missing share is never 0)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def resampled_sums(columns: Floats, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Column sums of bootstrap resamples: [items, columns] -> [resamples, columns]; at least one item."""
    sums = [counts @ columns for counts in _counts(len(columns), seed, resamples)]
    return np.concatenate(sums)


def _counts(items: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each item is drawn, [some resamples, items] at a time, so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // items)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        yield rng.multinomial(items, np.full(items, 1 / items), size=size).astype(np.float64)


def interval(estimate: float, values: Floats, level: float = LEVEL) -> Interval | None:
    """Percentile interval of resampled values, widened where needed so that it holds the estimate.

    Resamples with nothing to count (NaN) are left out; None when the estimate itself has nothing to count.
    """
    values = values[np.isfinite(values)]
    if not np.isfinite(estimate) or not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(min(float(low), estimate), max(float(high), estimate))


def paired_mean(
    first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> tuple[float, Interval | None]:
    """Mean of second - first over the same items, and its paired 95% interval.

    For any number per item, e.g. the media margins of two models on the same damaged inputs.
    Raises ValueError when the items differ or a value is not finite.
    """
    if first.keys() != second.keys():
        raise ValueError(unpaired(set(first), set(second)))
    if not first:
        return float("nan"), None
    ids = sorted(first)
    differences = np.array([[second[i] - first[i]] for i in ids], dtype=np.float64)
    if not np.isfinite(differences).all():
        bad = ids[int(np.argmin(np.isfinite(differences[:, 0])))]
        raise ValueError(f"item {bad!r}: expected finite numbers, got {first[bad]} and {second[bad]}")
    estimate = float(differences.mean())
    return estimate, interval(estimate, resampled_sums(differences, seed)[:, 0] / len(ids))


def unpaired(before: set[str], after: set[str]) -> str:
    """The message for two sets of items that should be the same."""
    only_before, only_after = sorted(before - after), sorted(after - before)
    return (
        f"a paired comparison needs the same items on both sides, got {len(only_before)} only before "
        f"{only_before[:3]} and {len(only_after)} only after {only_after[:3]}; "
        "evaluate both models with the same evaluation settings and seed"
    )
