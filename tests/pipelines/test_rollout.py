"""Group programs: choosing, damaging, seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.crop import Crop
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.choosing import Choose
from pipelines.programs.damaging import Damage
from pipelines.programs.sampling import Sample
from pipelines.rollout import Draft, Drop, Pipe, Step, Tools, derived_seed
from pipelines.types import Media, Op, Score

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def run(step: Step, draft: Draft, tools: Tools, seed: int = 5) -> Draft:
    return asyncio.run(step(draft, tools, seed))


def test_sample_scores_every_response(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = run(Sample(2), make_draft(), tools)
    assert tools.asked == [2]
    assert len(draft.rollouts) == 2
    assert [score.value for score in draft.scores if score is not None] == [1.0, 0.0]
    assert draft.sets == {"y": (0, 1)} and draft.chosen == {}


def test_a_scorer_that_loses_a_score_is_an_error(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    with pytest.raises(ValueError, match="1 scores for 2 responses"):
        run(Sample(2), make_draft(), make_tools(scores=(1.0,)))


def chosen(scores: list[float | None], min_gap: float = 0.0) -> dict[str, int]:
    """What `Choose` picks among responses with these scores."""
    made = tuple(Score(value=None, missing="no verdict") if s is None else Score(value=s) for s in scores)
    members = {"y": tuple(range(len(made)))}
    before = Draft(prompts={}, media={}, scores=made, sets=members)
    draft = asyncio.run(Choose(min_gap)(before, None, 0))  # type: ignore[arg-type]
    return dict(draft.chosen)


def test_best_and_worst() -> None:
    assert chosen([0.2, 0.9, -1.0, 0.5]) == {"w": 1, "l": 2}
    assert chosen([1.0, 0.0, 1.0, 0.0]) == {"w": 0, "l": 1}  # the earlier of equals


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6, unique=True))
def test_reversed_scores_swap_the_pair_and_equal_ones_always_give_the_same(scores: list[float]) -> None:
    pair, reversed_ = chosen([*scores]), chosen([-score for score in scores])
    assert (pair["w"], pair["l"]) == (reversed_["l"], reversed_["w"])
    doubled = chosen([*scores, *scores])
    assert doubled == pair == chosen([*scores, *scores])


def test_a_missing_score_is_never_chosen() -> None:
    """Not as 0 either: with -1 and -2 beside it a missing score would win as 0."""
    assert chosen([None, -2.0, None, -1.0]) == {"w": 3, "l": 1}


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.5, 0.5, 0.5], "tie"),
        ([0.5, None, 0.5], "tie"),
        ([None, None], "missing_score"),
        ([None, 1.0], "missing_score"),
        ([1.0], "too_few_responses"),
        ([], "too_few_responses"),
    ],
)
def test_nothing_to_choose_is_a_named_drop(scores: list[float | None], reason: str) -> None:
    with pytest.raises(Drop) as caught:
        chosen(scores)
    assert caught.value.reason == reason


def test_min_gap_is_exclusive() -> None:
    assert chosen([0.0, 0.6], min_gap=0.5) == {"w": 1, "l": 0}
    with pytest.raises(Drop, match="tie"):
        chosen([0.0, 0.5], min_gap=0.5)


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=8))
def test_choice_is_between_extremes(scores: list[float | None]) -> None:
    known = [score for score in scores if score is not None]
    if len(set(known)) < 2:
        with pytest.raises(Drop):
            chosen(scores)
    else:
        pair = chosen(scores)
        assert (scores[pair["w"]], scores[pair["l"]]) == (max(known), min(known))


def test_damage_adds_a_prompt_with_other_media(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Both pictures of a prompt are damaged, each with its own seed; the clean prompt and media stay."""
    before = make_draft(images=2)
    tools = make_tools()
    after = run(Damage("m", Diffuse(500)), before, tools)
    clean, damaged = after.prompts["x"], after.prompts["m"]
    assert clean is before.prompt
    assert (damaged.id, damaged.origin) == ("row-0", "m")
    assert damaged.digest != clean.digest
    assert [after.media[d].parent for d in damaged.media] == list(clean.media)
    assert set(before.media) < set(after.media)
    assert len(set(tools.seeds["damage"])) == 2
    for digest in damaged.media:
        op = after.media[digest].op
        assert op is not None and op.name == "diffuse"


def test_a_picture_shown_twice_is_damaged_once(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = make_draft()
    message = draft.prompt.messages[0]
    twice = Draft(prompts={"x": type(draft.prompt)(id="row", messages=(message, message))}, media=draft.media)
    tools = make_tools()
    damaged = run(Damage("m", Diffuse(500)), twice, tools).prompts["m"]
    assert len(tools.seeds["damage"]) == 1
    assert len(damaged.media) == 2 and len(set(damaged.media)) == 1


def unchanged(media: Media, mask: Any, seed: int) -> Media:
    return Media(kind="image", space="rgb8", payload=media.payload, parent=media.digest, op=Op(name="none"))


def test_without_media_or_effect_required_damage_drops(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    for images, perturbation, reason in (
        (0, Diffuse(500), "no_media_to_damage"),
        (1, unchanged, "damage_changed"),
    ):
        draft = make_draft(images=images)
        with pytest.raises(Drop, match=reason):
            run(Damage("m", perturbation), draft, make_tools())
        assert run(Damage("m", perturbation, optional=True), draft, make_tools()) is draft


def test_a_selector_needs_a_chosen_answer(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    step = Damage("m", Diffuse(500), lambda media, answer, gold, seed: None)
    with pytest.raises(ValueError, match=r"Damage\('m'\) reads 'w', which no earlier step chose"):
        run(step, make_draft(), make_tools())
    assert "m" in run(Choose() >> step, run(Sample(2), make_draft(), make_tools()), make_tools()).prompts


def test_a_program_is_deterministic_and_its_steps_have_own_seeds(
    make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    program = Sample(2) >> Choose() >> Damage("m", Crop())
    assert isinstance(program, Pipe) and len(program.steps) == 3
    first, second, other = make_tools(), make_tools(), make_tools()
    one, two = run(program, make_draft(), first), run(program, make_draft(), second)
    run(program, make_draft(), other, seed=6)
    assert one.prompts["m"].digest == two.prompts["m"].digest
    assert first.seeds == second.seeds
    assert first.seeds["sample"] != first.seeds["damage"]
    assert not set(first.seeds["sample"]) & set(other.seeds["sample"])


def test_derived_seeds() -> None:
    seeds = {derived_seed(seed, *path) for seed in (0, 1) for path in ((), (0,), (1,), (0, 1), ("a",), (10,))}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    np.random.default_rng(max(seeds))


def test_wrong_parameters() -> None:
    with pytest.raises(ValueError, match="at least 1 response, got 0"):
        Sample(0)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Choose(-1)
