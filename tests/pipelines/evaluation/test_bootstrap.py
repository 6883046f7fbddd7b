"""The bootstrap against what theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.evaluation import bootstrap, paired_mean


def test_interval_of_a_share_has_the_binomial_width() -> None:
    """400 items, share 0.3: standard error sqrt(0.3 * 0.7 / 400) = 0.0229, 1.96 times that is 0.0449."""
    columns = np.array([[1.0]] * 120 + [[0.0]] * 280)
    draws = bootstrap.resampled_sums(columns, seed=0, resamples=20_000)[:, 0] / 400
    bounds = bootstrap.interval(0.3, draws)
    assert bounds is not None
    assert bounds == pytest.approx((0.3 - 0.0449, 0.3 + 0.0449), abs=0.004)


def test_chunks_of_counts_are_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.arange(10.0)[:, None]
    whole = bootstrap.resampled_sums(columns, seed=3, resamples=50)
    monkeypatch.setattr(bootstrap, "_CELLS", 70)  # 7 resamples at a time
    assert np.array_equal(bootstrap.resampled_sums(columns, seed=3, resamples=50), whole)


def test_pairing_removes_what_both_sides_share() -> None:
    """Items differ by up to 100; the second side is 1 higher on each, so the difference has no spread."""
    first = {f"i{n}": float(n) for n in range(100)}
    second = {name: value + 1 for name, value in first.items()}
    assert paired_mean(first, second) == (1.0, (1.0, 1.0))


def test_paired_mean_refuses_other_items_and_nan() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_mean({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match=r"item 'b': expected finite numbers, got 1\.0 and nan"):
        paired_mean({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": math.nan})


def test_no_items_give_no_interval() -> None:
    estimate, bounds = paired_mean({}, {})
    assert math.isnan(estimate)
    assert bounds is None
