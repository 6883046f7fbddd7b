"""The linear probe: about 0.5 where the sides come from one source, near 1 with a watermark."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.rewards.probe import probe_auc, text_probe_auc

RNG = np.random.default_rng(0)
QUESTION = RNG.normal(size=(200, 16))  # what the two sides of a pair share


def sides() -> tuple[np.ndarray, np.ndarray]:
    return QUESTION + 0.5 * RNG.normal(size=(200, 16)), QUESTION + 0.5 * RNG.normal(size=(200, 16))


def test_one_source_is_chance():
    """400 answers in 5 folds: the error of an area under the curve of 0.5 is about 0.03; 4 of them."""
    areas = [probe_auc(*sides(), seed=seed) for seed in range(3)]
    assert abs(np.mean(areas) - 0.5) < 0.12


def test_a_watermark_is_found_and_swapping_labels_hides_it():
    chosen, rejected = sides()
    marked = chosen + 3.0 * np.eye(16)[0]
    assert probe_auc(marked, rejected) > 0.95
    swapped = RNG.random(200) < 0.5
    mixed = np.where(swapped[:, None], rejected, marked), np.where(swapped[:, None], marked, rejected)
    assert abs(probe_auc(*mixed) - 0.5) < 0.15


def test_texts_of_one_source_and_texts_with_a_watermark():
    words = ["a", "red", "blue", "green", "seven", "two", "one", "top", "left", "right", "bottom", "dog"]
    drawn = [" ".join(RNG.choice(words, size=RNG.integers(4, 20))) for _ in range(400)]
    chosen, rejected = drawn[:200], drawn[200:]
    assert abs(text_probe_auc(chosen, rejected) - 0.5) < 0.15
    assert text_probe_auc([f"sure : {text}" for text in chosen], rejected) > 0.95
    assert text_probe_auc([f"{text} {text}" for text in chosen], rejected) > 0.7  # length tells as well


def test_the_same_seed_gives_the_same_area():
    chosen, rejected = sides()
    assert probe_auc(chosen, rejected, seed=3) == probe_auc(chosen, rejected, seed=3)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="at least 10 pairs"):
        probe_auc(QUESTION[:9], QUESTION[:9])
    with pytest.raises(ValueError, match=r"\(200, 16\) and \(100, 16\)"):
        probe_auc(QUESTION, QUESTION[:100])
