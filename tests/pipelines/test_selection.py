"""Selectors: by hand, and what must hold for any rewards and directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.selection import Neighbourhood, along, best_of_n, consensus
from pipelines.types import Score

VECTORS = st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=6)
DIRECTION = st.tuples(*[st.floats(-5, 5)] * 3).filter(lambda v: math.hypot(*v) > 0.1)


def test_best_of_n():
    nothing = Score(value=None, missing="m")
    scores = [nothing, Score(value=-1.0), Score(value=2.0), Score(value=2.0)]
    assert best_of_n(scores) == 2 and best_of_n([nothing]) is None and best_of_n([]) is None


def test_consensus():
    """Positions 0, 1, 5 with likeness -distance: support -6, -5, -9."""
    assert consensus(["0", "1", "5"], lambda a, b: -abs(int(a) - int(b))) == 1
    assert consensus(["only"], lambda a, b: 0.0) == 0
    with pytest.raises(ValueError, match="at least one"):
        consensus([], lambda a, b: 0.0)


def test_a_direction_of_one_coordinate_ignores_the_other():
    rewards = [[1.0, 9.0], [2.0, -9.0], [0.0, 100.0]]
    assert along((1, 0), rewards) == 1 and along((0, 3), rewards) == 2 and along((-1, 0), rewards) == 2
    with pytest.raises(ValueError, match="with a length"):
        along((0, 0), rewards)


@given(DIRECTION, st.integers(1, 8), st.floats(0, 90), st.integers(0, 2**31))
def test_directions_lie_in_the_cone(direction, k, degrees, seed):
    wanted = Neighbourhood(direction, k, degrees)
    found = wanted.directions(seed)
    assert found.shape == (k, 3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(k))
    cosines = found @ (np.asarray(direction) / math.hypot(*direction))
    assert np.all(cosines >= math.cos(math.radians(degrees)) - 1e-9) and cosines[0] == pytest.approx(1)
    assert np.array_equal(found, wanted.directions(seed))


@given(DIRECTION, VECTORS)
def test_the_selected_answer_is_the_best_of_the_pool(direction, rewards):
    chosen = Neighbourhood(direction, k=len(rewards)).select(rewards)
    values = np.asarray(rewards) @ np.asarray(direction) / math.hypot(*direction)
    assert values[chosen] == pytest.approx(values.max())


@given(DIRECTION, VECTORS)
def test_without_an_angle_it_is_best_of_k(direction, rewards):
    alone = Neighbourhood(direction, k=len(rewards), degrees=0.0)
    v = np.asarray(direction) / math.hypot(*direction)
    assert np.allclose(alone.directions(1), v)
    scores = [Score(value=float(value)) for value in np.asarray(rewards) @ v]
    assert alone.select(rewards) == best_of_n(scores)


def test_angles_and_counts_that_make_no_sense():
    with pytest.raises(ValueError, match="k >= 1"):
        Neighbourhood((1, 0), k=0)
    with pytest.raises(ValueError, match="0 to 90"):
        Neighbourhood((1, 0), degrees=91)
