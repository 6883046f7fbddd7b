"""The three methods, one golden each: the program is run with fake tools and its comparison is looked at."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.objectives.batch import tabulate
from pipelines.recipe import Recipe
from pipelines.recipes import load
from pipelines.rollout import Draft, Drop
from pipelines.schedules import InOrder, Thirds
from pipelines.types import Comparison

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def produce(recipe: Recipe, draft: Draft, tools: Any) -> tuple[Draft, Comparison]:
    done = asyncio.run(recipe.stages[0].rollout(draft, tools, 17))
    (comparison,) = recipe.stages[0].compare("g", done)
    return done, comparison


def shape(comparison: Comparison) -> dict[str, tuple[str, str, str]]:
    """edge -> (winner's role, loser's role, derived axis)."""
    roles = [candidate.role for candidate in comparison.candidates]
    return {e.name: (roles[e.winner], roles[e.loser], comparison.axis(e)) for e in comparison.preferences}


BOTH = {"text": ("w@x", "l@x", "text"), "media": ("w@x", "w@m", "media")}


def loss_of(recipe: Recipe, comparison: Comparison, rho: dict[str, float]) -> float:
    """The objective of one comparison, from rho per role."""
    table = tabulate([comparison])
    policy = torch.zeros(len(table.cells), table.longest)
    for candidate, row in zip(comparison.candidates, table.index[0], strict=True):
        policy[row, 0] = rho[candidate.role]
    reads = replace(table.reads(), tokens={"policy": policy, "reference": torch.zeros_like(policy)})
    losses = [(weight, term(reads)) for weight, term in recipe.stages[0].objective.terms]
    return sum(weight * float(loss.value.sum() / loss.weight.sum()) for weight, loss in losses)


def test_online_dpo(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """The media edge is only watched, so w@m does not enter the loss.

    rho_w = ln 3 / 0.2 and rho_l = -ln 3 / 0.2 at beta 0.1 give the logit ln 3 and the loss ln(4/3).
    """
    recipe = load("online_dpo", {"samples": 2})
    done, comparison = produce(recipe, make_draft(), make_tools())
    assert shape(comparison) == BOTH
    assert [r.text for r in comparison.responses] == [
        done.rollouts[0].response.text,
        done.rollouts[1].response.text,
    ]
    assert recipe.stages[0].objective.edges == {"text"}
    rho = math.log(3) / 0.2
    for watched in (-50.0, 50.0):
        loss = loss_of(recipe, comparison, {"w@x": rho, "l@x": -rho, "w@m": watched})
        assert loss == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_online_dpo_on_text_alone(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """A prompt without media is trained on as usual; with the watch off there is no media edge either."""
    for params, images in (({}, 0), ({"watch_media": False}, 1)):
        recipe = load("online_dpo", {"samples": 2, **params})
        done, comparison = produce(recipe, make_draft(images=images), make_tools())
        assert shape(comparison) == {"text": BOTH["text"]}
        assert list(done.prompts) == ["x"]


def test_mdpo(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Three terms, unweighted. beta 0.1, rho: w@x 0, l@x -10 ln 3, w@m -10 ln 3: ln(4/3) twice and ln 2."""
    recipe = load("mdpo", {"samples": 2})
    done, comparison = produce(recipe, make_draft(), make_tools())
    assert shape(comparison) == BOTH
    damaged = done.media[done.prompts["m"].media[0]]
    assert damaged.parent == done.prompt.media[0]
    assert damaged.op is not None and damaged.op.name == "crop"
    x0, y0, x1, y1 = damaged.op.params["box"]
    assert (x1 - x0 - 0.5) * (y1 - y0 - 0.5) <= 0.2 * 40 * 56
    low = -10 * math.log(3)
    loss = loss_of(recipe, comparison, {"w@x": 0.0, "l@x": low, "w@m": low})
    assert loss == pytest.approx(2 * math.log(4 / 3) + math.log(2), abs=1e-5)


def test_mfpo(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """The chosen answer names the red seven alone: its box is noised, the rest of the picture is untouched.

    eta = ln 3 moves the margin term: rho_w = 0 gives -log sigmoid(-ln 3) = ln 4; the pairs are ln(4/3) each.
    """
    recipe = load("mfpo", {"samples": 2, "eta": math.log(3)})
    done, comparison = produce(recipe, make_draft(), make_tools())
    assert shape(comparison) == BOTH
    clean, damaged = done.media[done.prompt.media[0]], done.media[done.prompts["m"].media[0]]
    mask = np.zeros((40, 56), dtype=np.bool_)
    mask[3:20, 2:12] = True
    assert np.array_equal(clean.payload[~mask], damaged.payload[~mask])
    assert (clean.payload[mask] != damaged.payload[mask]).mean() > 0.9
    assert damaged.op is not None
    params = dict(damaged.op.params)
    assert params.pop("strength") > 0
    assert set(params.pop("keywords")) == {"red", "seven", "top", "left"}
    assert params == {"step": 500, "space": "pixels", "boxes": [[2.0, 3.0, 12.0, 20.0]], "fallback": False}
    low = -10 * math.log(3)
    loss = loss_of(recipe, comparison, {"w@x": 0.0, "l@x": low, "w@m": low})
    assert loss == pytest.approx(2 * math.log(4 / 3) + math.log(4), abs=1e-5)


def test_mfpo_falls_back_to_the_whole_picture(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(answers=("a green two .", "it is a dog ."))
    done, _ = produce(load("mfpo", {"samples": 2}), make_draft(), tools)
    damaged = done.media[done.prompts["m"].media[0]]
    assert damaged.op is not None and damaged.op.params["fallback"] is True
    assert (damaged.payload != done.media[done.prompt.media[0]].payload).mean() > 0.9


def test_mfpo_curriculum() -> None:
    assert load("mfpo", {"survey": 5}).stages[0].order == Thirds(5)
    assert load("mfpo", {"curriculum": False}).stages[0].order == InOrder()


@pytest.mark.parametrize("name", ["mdpo", "mfpo"])
def test_methods_with_a_media_term_drop_prompts_without_media(
    name: str, make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    with pytest.raises(Drop, match="no_media_to_damage"):
        produce(load(name, {"samples": 2}), make_draft(images=0), make_tools())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regions": "grounded"}, "regions='grounded' needs `detector`"),
        ({"regions": "masks", "detector": "d"}, "regions='masks' needs `segmenter`"),
        ({"regions": "boxes", "detector": "d"}, "regions='boxes' does not use `detector`"),
        ({"regions": "whole", "segmenter": "s"}, "regions='whole' does not use `segmenter`"),
    ],
)
def test_mfpo_regions_and_models_fit(params: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("mfpo", params)
