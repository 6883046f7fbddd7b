"""Orders over prompts, semantic entropy."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.schedules import EasyToHard, HardToEasy, InOrder, Thirds, meaning, semantic_entropy


@given(st.lists(st.floats(0, 3), max_size=40))
def test_thirds_are_a_permutation_from_easy_to_hard(difficulty: list[float]) -> None:
    order = Thirds()(difficulty)
    assert sorted(order) == list(range(len(difficulty)))
    n = len(difficulty)
    parts = [order[n * i // 3 : n * (i + 1) // 3] for i in range(3)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)  # inside a third: the order of the data
    for easier, harder in ((0, 1), (1, 2), (0, 2)):
        if parts[easier] and parts[harder]:
            assert max(difficulty[i] for i in parts[easier]) <= min(difficulty[i] for i in parts[harder])


@given(st.lists(st.floats(0, 5), max_size=40), st.integers(1, 6))
def test_a_curriculum_by_gaps_holds_the_pooled_prompts_with_gaps_that_never_grow(
    gaps: list[float], parts: int
) -> None:
    """The same prompts as in pooled order, and no gap of a part is larger than one of the part before."""
    order = EasyToHard(key="score_gap", parts=parts)
    ranked = order.ranked([-gap for gap in gaps])
    assert len(ranked) == parts and sorted(p for part in ranked for p in part) == InOrder()(gaps)
    assert [p for part in ranked for p in part] == order([-gap for gap in gaps])
    found = [[gaps[p] for p in part] for part in ranked if part]
    assert all(min(before) >= max(after) for before, after in itertools.pairwise(found))
    assert HardToEasy(key="score_gap", parts=parts).ranked([-gap for gap in gaps]) == ranked[::-1]


def test_a_curriculum_refuses_what_makes_no_parts() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EasyToHard(parts=0)
    with pytest.raises(ValueError, match=r"HardToEasy\(samples"):
        HardToEasy(samples=1, key="score_gap")
    assert EasyToHard(samples=0, key="strength").key == "strength"


def test_thirds_golden() -> None:
    """Difficulties ranked: 5 (.1), 1 (.2) | 0 (.5), 3 (.5, later) | 4 (.7), 2 (.9)."""
    assert Thirds()([0.5, 0.2, 0.9, 0.5, 0.7, 0.1]) == [1, 5, 0, 3, 2, 4]


def test_thirds_refuse_what_they_cannot_rank() -> None:
    with pytest.raises(ValueError, match="difficulty of prompt 1: expected a number, got nan"):
        Thirds()([0.0, math.nan])
    with pytest.raises(ValueError, match="at least 2 answers, got 1"):
        Thirds(samples=1)


def test_in_order() -> None:
    assert InOrder()([3.0, 1.0, 2.0]) == [0, 1, 2]
    assert InOrder().samples == 0 and InOrder().key is None


@given(st.integers(1, 12))
def test_entropy_of_one_and_of_all_meanings(n: int) -> None:
    assert semantic_entropy(["same"] * n) == 0.0
    assert semantic_entropy(list(range(n))) == pytest.approx(math.log(n), abs=1e-12)


def test_entropy_golden() -> None:
    """Clusters of 2, 1 and 1 of 4: 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2."""
    assert semantic_entropy(["a", "b", "a", "c"]) == pytest.approx(1.5 * math.log(2))
    with pytest.raises(ValueError, match="at least one answer"):
        semantic_entropy([])


def test_meaning_ignores_order_but_keeps_what_belongs_together() -> None:
    first = meaning("A red seven top left and a blue one bottom right .")
    assert first == meaning("a blue one bottom right, and a red seven top left.")
    assert first != meaning("a blue seven top left and a red one bottom right .")
    assert first != meaning("a red seven top left .")
    assert meaning("sand and water") == (("sand",), ("water",))
    assert meaning("3.5 metres") == (("3", "5", "metres"),)
    assert meaning(" . ") == ()
