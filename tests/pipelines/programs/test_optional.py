from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.decoding import FromReference
from pipelines.programs.choosing import Choose
from pipelines.programs.optional import Maybe
from pipelines.programs.sampling import Foreign, Sample
from pipelines.rollout import Draft, Drop


def test_a_step_that_finds_nothing_leaves_the_draft_as_it_was(
    make_draft: Callable[..., Draft], make_tools: Callable[..., Any]
) -> None:
    tools = make_tools(scores=(1.0, 1.0))
    done = asyncio.run((Sample(2) >> Maybe(Choose())).__call__(make_draft(), tools, 0))
    assert set(done.sets) == {"y"} and not done.chosen
    with pytest.raises(Drop, match="tie"):
        asyncio.run((Sample(2) >> Choose())(make_draft(), tools, 0))


def test_a_step_that_finds_something_does_it(
    make_draft: Callable[..., Draft], make_tools: Callable[..., Any]
) -> None:
    done = asyncio.run((Sample(2) >> Maybe(Choose()))(make_draft(), make_tools(), 0))
    assert done.chosen == {"w": 0, "l": 1}


def test_what_it_makes_is_not_promised_but_what_it_needs_is() -> None:
    step = Maybe(Sample(1, "r", decoder=FromReference()))
    assert not step.makes and not Maybe(Foreign("f")).makes
    assert step.needs == {"reference"}


def test_an_error_is_no_drop(make_draft: Callable[..., Draft], make_tools: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="no earlier step made the response 'y'"):
        asyncio.run(Maybe(Choose())(make_draft(), make_tools(), 0))
