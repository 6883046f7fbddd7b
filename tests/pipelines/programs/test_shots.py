from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipelines.programs.shots import Shots
from pipelines.rollout import Draft, Drop

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]
SHOTS = [{"question": f"q{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(3)]


def shown(draft: Draft, tools: Any, shots: Any, count: int = 2) -> Draft:
    gold = {"shots": shots} if shots is not None else {}
    draft = replace(draft, prompts={"x": replace(draft.prompt, gold=gold)})
    return asyncio.run(Shots("xu", count=count)(draft, tools, 0))


def test_the_first_examples_come_before_the_question(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = make_draft()
    done = shown(draft, make_tools(), SHOTS)
    examples, *rest = done.at("xu").messages
    assert examples.role == "system" and tuple(rest) == draft.prompt.messages
    assert examples.parts[0].text == ("q0\nThis user prefers: c0\nto: r0\nq1\nThis user prefers: c1\nto: r1")
    assert done.prompt.messages == draft.prompt.messages and done.at("xu").media == draft.prompt.media


@pytest.mark.parametrize("shots", [None, [], SHOTS[:1]])
def test_a_user_with_too_few_examples_is_dropped(
    shots: Any, make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    with pytest.raises(Drop, match="no_shots"):
        shown(make_draft(), make_tools(), shots)


@pytest.mark.parametrize("broken", [{"question": "q", "chosen": "c"}, ["q", "c", "r"], "q", 7])
def test_an_example_of_another_form_names_row_and_form(
    broken: Any, make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    with pytest.raises(ValueError, match=r"column 'shots' of row 'row-0': expected a list of \{'question'"):
        shown(make_draft(), make_tools(), [broken, broken])


def test_the_error_shows_the_example_that_is_wrong(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    with pytest.raises(ValueError, match=r"got \{'question': 'odd'\}"):
        shown(make_draft(), make_tools(), [SHOTS[0], {"question": "odd"}])
    with pytest.raises(ValueError, match=r"expected a list of .*, got 7"):
        shown(make_draft(), make_tools(), 7)
