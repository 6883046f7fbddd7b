from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.programs.sampling import Sample
from pipelines.programs.winning import WinProbability
from pipelines.rollout import Draft

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def won(draft: Draft, tools: Any, **step: Any) -> list[Any]:
    program = Sample(len(tools.scores)) >> WinProbability(**step)
    return list(asyncio.run(program(draft, tools, 0)).scores)


def test_two_answers(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """sigmoid(ln 3) = 3/4 against the other, 1/2 against itself: 5/8 and 3/8. Other parts are kept."""
    tools = make_tools(scores=(math.log(3), 0.0), parts={"right": (2.0, 1.0)})
    first, second = won(make_draft(), tools)
    assert first.parts == {"right": 2.0, "win": pytest.approx(5 / 8)}
    assert second.parts == {"right": 1.0, "win": pytest.approx(3 / 8)}
    assert first.value == math.log(3)


def test_a_missing_score_neither_wins_nor_counts(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    first, none, last = won(make_draft(), make_tools(scores=(math.log(3), None, 0.0)), part="p")
    assert (first.parts["p"], last.parts["p"]) == (pytest.approx(5 / 8), pytest.approx(3 / 8))
    assert none.value is None and "p" not in none.parts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # both only build
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_they_average_to_one_half_and_follow_the_order(
    make_draft: MakeDraft, make_tools: MakeTools, values: list[float]
) -> None:
    found = [score.parts["win"] for score in won(make_draft(), make_tools(scores=tuple(values)))]
    assert sum(found) / len(found) == pytest.approx(0.5)
    for value, probability in zip(values, found, strict=True):
        assert all(probability >= p - 1e-12 for v, p in zip(values, found, strict=True) if value >= v)
