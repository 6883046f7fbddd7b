"""What the text recipes compare, made by their own programs with honest tools on the glyphs world."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pipelines.recipe import Stage
from pipelines.recipes import load
from pipelines.types import Rollout, Score

Play = Callable[..., Any]

EITHER = [
    "dpo",
    "cdpo",
    "robust_dpo",
    "hinge_dpo",
    "ipo",
    "ipo_sum",
    "ln_dpo",
    "exo",
    "discopop",
    "nca",
    "bco_pair",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "simpo",
    "alpha_po",
    "orpo",
    "cpo",
    "slic",
    "ld_dpo",
    "f_dpo",
    "rpo_sft",
    "flex_dpo",
    "hypo_gating",
    "aot",
    "aot_unpaired",
    "wpo",
    "tr_dpo",
    "mrpo",
    "sparse_po",
]  # take fresh and recorded pairs
PAIRED = [*EITHER, "apo_accelerated", "single_source", "modpo", "sppo", "online_dpo"]
RECORDS = [
    *EITHER,
    "tpo_triple",
    "rationale_dpo",
    "rationale_orpo",
    "hypo_coverage",
    "pref_ft",
    "vpo_incentivized",
]


def value(candidate: Any) -> float:
    assert candidate.score is not None and candidate.score.value is not None
    return candidate.score.value


@pytest.mark.parametrize("name", PAIRED)
def test_the_best_of_the_fresh_answers_meets_the_worst(name: str, play: Play) -> None:
    played = play(name, samples=5)
    scores = [score.value for score in played.draft.scores]
    best, prompt, one = played.side("text", "winner")
    worst, other_prompt, other = played.side("text", "loser")
    assert len(scores) == 5 and value(best) == max(scores) > min(scores) == value(worst)
    assert prompt == other_prompt == played.draft.prompt and one != other
    for candidate in (best, worst):
        assert candidate.behaviour is not None and candidate.behaviour.stream == "policy"
        assert candidate.sampled_under == prompt.digest
    assert played.stage.max_lag is None


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_pairs_are_those_of_the_data(name: str, play: Play) -> None:
    played = play(name, pairs="recorded")
    gold = played.draft.prompt.gold
    texts = {response.text for response in played.one.responses}
    assert gold["chosen"] in texts
    if any(edge.name == "text" for edge in played.one.preferences):
        sides = [played.side("text", side) for side in ("winner", "loser")]
        assert [response.text for _, _, response in sides] == [gold["chosen"], gold["rejected"]]
        assert all(candidate.behaviour is None for candidate, _, _ in sides)


def test_min_gap_keeps_close_answers_apart(play: Play) -> None:
    """The i-th answer has i false mentions, so best and worst of four lie several points apart, but not
    50."""
    assert play("dpo", min_gap=1.0).one.preferences
    with pytest.raises(AssertionError, match="'tie'"):
        play("dpo", min_gap=50.0)


def test_online_dpo_watches_the_picture_without_training_on_it(play: Play) -> None:
    played = play("online_dpo")
    own, clean, one = played.side("media", "winner")
    _, damaged, other = played.side("media", "loser")
    assert one is other and clean.media != damaged.media and own is played.side("text", "winner")[0]
    assert played.stage.objective.edges == {"text"}


# -- fresh samples of other decoders -------------------------------------------------------------------------


def streams(played: Any) -> Counter[str]:
    return Counter(rollout.behaviour.stream for rollout, _ in played.tools.rollouts)


def test_xpo_compares_one_sample_of_the_policy_with_one_of_the_reference(play: Play) -> None:
    played = play("xpo")
    assert streams(played) == {"policy": 1, "reference": 1} and played.stage.needs == {"reference"}
    ((bonus, _, said),) = played.role("r")
    assert bonus.behaviour is not None and bonus.behaviour.stream == "reference"
    sides = [played.side("text", side) for side in ("winner", "loser")]
    assert {candidate.behaviour.stream for candidate, _, _ in sides} == {"policy", "reference"}
    assert said in [response for _, _, response in sides]
    assert value(sides[0][0]) > value(sides[1][0])


def test_nash_md_meets_an_opponent_of_the_mixture(play: Play) -> None:
    played = play("nash_md", reference_share=0.25)
    own, opponent = played.side("duel", "winner")[0], played.side("duel", "loser")[0]
    assert (own.behaviour.stream, opponent.behaviour.stream) == ("policy", "mixture")
    ((_, decoder),) = [item for item in played.tools.rollouts if item[0].behaviour.stream == "mixture"]
    assert decoder.reference_share == 0.25
    assert None not in (own.score, opponent.score)
    assert played.stage.freshness == 0


@pytest.mark.parametrize(("attitude", "stream"), [("optimism", "reference"), ("pessimism", "policy")])
def test_vpo_calibrates_on_the_reference_or_on_the_chosen(attitude: str, stream: str, play: Play) -> None:
    played = play("vpo_incentivized", attitude=attitude)
    ((candidate, _, _),) = played.role("calibration")
    assert candidate.behaviour.stream == stream
    if attitude == "pessimism":
        assert candidate.behaviour is played.side("text", "winner")[0].behaviour
    assert played.stage.needs == ({"reference"} if attitude == "optimism" else frozenset())


def test_hypo_adds_unlabelled_fresh_samples_to_recorded_pairs(play: Play) -> None:
    played = play("hypo_coverage", kl_samples=3)
    fresh = played.role("kl")
    assert len(fresh) == 3 and all(c.score is None and c.behaviour.stream == "policy" for c, _, _ in fresh)
    assert played.side("text", "winner")[0].behaviour is None
    assert played.stage.freshness == 0


# -- lists and labels ----------------------------------------------------------------------------------------


def test_curri_dpo_goes_from_easy_to_hard(play: Play) -> None:
    """Stage k pairs the best with an ever better rejected answer; pooled, the same pairs come from one
    group."""
    pairs = [play("curri_dpo", stage) for stage in range(3)]
    sides = [[value(p.side("text", side)[0]) for side in ("winner", "loser")] for p in pairs]
    assert len({winner for winner, _ in sides}) == 1
    gaps = [winner - loser for winner, loser in sides]
    assert all(easy > hard for easy, hard in pairwise(gaps)) and gaps[-1] > 0
    pooled = play("curri_dpo", pooled=True)
    names = ("easy", "medium", "hard")
    both = [
        [(p.side(edge, "winner")[2].text, p.side(edge, "loser")[2].text) for p, edge in of]
        for of in ([(p, "text") for p in pairs], [(pooled, name) for name in names])
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(("name", "role"), [("pro", "y"), ("ranklist", "y"), ("rwr", "y")])
def test_lists_hold_every_answer_with_its_score(name: str, role: str, play: Play) -> None:
    played = play(name, samples=4)
    cells = played.role(role)
    assert [value(c) for c, _, _ in cells] == [score.value for score in played.draft.scores]
    assert len(cells) == 4 and not played.one.preferences


def test_tpo_tree_orders_every_two_answers(play: Play) -> None:
    """Four answers of different scores make six pairs, each with the better one first; `min_gap` keeps the
    wide."""
    played = play("tpo_tree", samples=4)
    scores = [[value(played.one.candidates[i]) for i in (e.winner, e.loser)] for e in played.one.preferences]
    assert len(scores) == 6 == len({e.key for e in played.one.preferences})
    assert all(better > worse for better, worse in scores)
    wide = play("tpo_tree", samples=4, min_gap=max(b - w for b, w in scores) - 0.5)
    assert 1 <= len(wide.one.preferences) < 6


def test_sppo_gives_each_answer_its_win_probability(play: Play) -> None:
    played = play("sppo", samples=4)
    rewards = np.array([score.value for score in played.draft.scores])
    wanted = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))
    found = [score.parts["win"] for score in played.draft.scores]
    assert found == pytest.approx(list(wanted.mean(1))) and np.mean(found) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_answers_are_good_or_bad_by_themselves(name: str, play: Play) -> None:
    """By the group's mean, or by a threshold that here no answer reaches."""
    played = play(name, samples=4)
    good, bad = ([value(c) for c, _, _ in played.role(role)] for role in ("good", "bad"))
    mean = np.mean(good + bad)
    assert len(good) + len(bad) == 4 and min(good) >= mean > max(bad)
    strict = play(name, samples=4, threshold=100.0)
    assert len(strict.role("bad")) == 4 and not strict.role("good")
    assert not strict.one.preferences


def test_kto_takes_the_answer_to_another_prompt(play: Play, glyphs_tools: Any, glyphs_draft: Any) -> None:
    """It is scored under this prompt; the first group of a run has none and trains without."""
    assert not play("kto").role("kl")
    tools, elsewhere = glyphs_tools(), glyphs_draft(3)
    (answer,) = asyncio.run(tools.sample(elsewhere.prompt, elsewhere.media, 1, 5))

    async def foreign() -> Rollout:
        return answer

    tools.foreign = foreign
    ((candidate, prompt, response),) = (played := play("kto", tools=tools)).role("kl")
    assert response == answer.response and prompt == played.draft.prompt
    assert candidate.sampled_under == elsewhere.prompt.digest != prompt.digest


# -- likelihoods ---------------------------------------------------------------------------------------------


def test_what_supervised_recipes_imitate(play: Play) -> None:
    best = play("best_of_n", samples=4)
    ((candidate, _, _),) = best.role("y")
    assert value(candidate) == max(score.value for score in best.draft.scores)
    assert play("best_of_n", samples=1).role("y")  # nothing has to be worse
    for name, role in (("pref_ft", "y"), ("implicit_sft", "g")):
        ((_, _, response),) = (played := play(name)).role(role)
        assert response.text == played.draft.prompt.gold["answer"] and response.origin == "gold"
        assert not played.tools.rollouts
    ((_, _, gold),) = (triple := play("tpo_triple")).role("g")
    assert gold.text == triple.draft.prompt.gold["answer"] and triple.side("text", "loser")[2] != gold


def test_dpa_follows_the_direction_that_its_prompt_states(play: Play, glyphs_tools: Any) -> None:
    """The parts pull apart: many right mentions against few wrong ones. The best v . r is imitated under
    xv."""
    params = {"first": "right", "second": "wrong", "samples": 4, "degrees": 45.0}
    tools = glyphs_tools()
    judge = tools.score

    async def pulled(rollouts: Any, media: Any) -> list[Score]:
        return [
            replace(s, parts={"right": float(i), "wrong": 3.0 * (i == 1)})
            for i, s in enumerate(await judge(rollouts, media))
        ]

    tools.score = pulled
    played = play("dpa", tools=tools, **params)
    v = np.array([played.draft.facts[f"direction.{name}"] for name in ("first", "second")])
    assert np.linalg.norm(v) == pytest.approx(1) and abs(np.degrees(np.arctan2(v[1], v[0]))) <= 45
    ((_, prompt, response),) = played.role("best")
    rewards = np.array([[s.parts["right"], s.parts["wrong"]] for s in played.draft.scores])
    assert response == played.draft.rollouts[int((rewards @ v).argmax())].response
    said = prompt.messages[-1].parts[-1].text
    assert f"right: {round(100 * v[0])}." in said and f"wrong: {round(100 * v[1])}." in said
    assert prompt != played.draft.prompt and all(r.prompt == prompt for r in played.draft.rollouts)
    with pytest.raises(ValueError, match=r"score parts \['kind'\], but the reward gives only"):
        play("dpa", tools=glyphs_tools(), **{**params, "first": "kind"})


def test_objectives_read_what_is_emitted() -> None:
    """Edges and roles of every stage's objective are among those that its `compare` gives."""
    for name in (*PAIRED, *RECORDS, "mapl", "fspo", "curri_dpo", "tpo_tree"):
        for stage in load(name, {}).stages:
            assert isinstance(stage, Stage)
            assert stage.objective.edges <= stage.compare.emits
            assert stage.objective.roles <= stage.compare.roles
