from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.programs.directions import SHARES, Along, Direct
from pipelines.programs.sampling import Sample
from pipelines.rollout import Draft, Drop

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def directed(draft: Draft, tools: Any, degrees: float, seed: int) -> Draft:
    return asyncio.run(Direct("xv", "right", "short", degrees)(draft, tools, seed))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # both only build
@given(st.integers(0, 2**31 - 1), st.floats(0, 180))
def test_a_direction_is_a_unit_vector_within_its_angle(
    make_draft: MakeDraft, make_tools: MakeTools, seed: int, degrees: float
) -> None:
    done = directed(make_draft(), make_tools(), degrees, seed)
    first, second = (done.facts[share] for share in SHARES)
    assert math.hypot(first, second) == pytest.approx(1)
    assert abs(math.degrees(math.atan2(second, first))) <= degrees + 1e-9
    said = done.at("xv").messages[-1].parts[-1].text
    assert said.endswith(f"right: {round(100 * first)}. short: {round(100 * second)}.")


def test_the_same_seed_draws_the_same_and_another_another(
    make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    draws = [directed(make_draft(), make_tools(), 45, seed).facts[SHARES[0]] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_clean_prompt_is_kept(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = make_draft()
    done = directed(draft, make_tools(), 45, 0)
    assert done.prompt == draft.prompt and done.at("xv").origin == "xv"
    assert done.at("xv").media == draft.prompt.media


@pytest.mark.parametrize(("degrees", "seeds"), [(0.0, range(3))])
def test_no_angle_ignores_the_second_reward(
    degrees: float, seeds: range, make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    """v = (1, 0): the answer with the best first part, whatever the second says; among equals the earlier."""
    for seed in seeds:
        tools = make_tools(scores=(0.0, 0.0, 0.0), parts={"right": (1, 3, 3), "short": (99, -99, 99)})
        program = Direct("xv", "right", "short", degrees) >> Sample(3, under="xv")
        done = asyncio.run((program >> Along("w", "right", "short"))(make_draft(), tools, seed))
        assert done.chosen["w"] == 1


def test_the_best_along_the_direction_is_taken(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """For each of many directions the largest v . r; a missing score never wins."""
    parts = {"right": (3.0, 0.0, 50.0), "short": (0.0, 3.0, 50.0)}
    seen = set()
    for seed in range(12):
        tools = make_tools(scores=(0.0, 0.0, None), parts=parts)
        program = Direct("xv", "right", "short", 90) >> Sample(3, under="xv") >> Along("w", "right", "short")
        done = asyncio.run(program(make_draft(), tools, seed))
        first, second = (done.facts[share] for share in SHARES)
        assert done.chosen["w"] == (0 if first >= second else 1)
        seen.add(done.chosen["w"])
    assert seen == {0, 1}


def test_no_score_at_all_drops_the_group(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    program = Direct("xv", "a", "b") >> Sample(2, under="xv") >> Along("w", "a", "b")
    with pytest.raises(Drop, match="missing_score"):
        asyncio.run(program(make_draft(), make_tools(scores=(None, None)), 0))
