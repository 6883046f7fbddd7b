"""How fresh, how often and in which order DPO's pairs are trained on: the knobs reach their slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.catalogue import stage_lines
from pipelines.recipe import Stage
from pipelines.recipes import load
from pipelines.rollout import Drop
from pipelines.schedules import EasyToHard, HardToEasy, InOrder, Key


def stage_of(**params: Any) -> Stage:
    (stage,) = load("dpo", params).stages
    return stage


def share_of_fresh(stage: Stage, draft: Any, tools: Any, groups: int = 200) -> float:
    """Among groups that gave a pair; every pair is fresh or recorded as a whole."""
    fresh: list[bool] = []
    for seed in range(groups):
        try:
            done = asyncio.run(stage.rollout(draft, tools, seed))
        except Drop:
            continue
        kinds = {done.rollout(name).behaviour is not None for name in ("w", "l")}
        (kind,) = kinds
        fresh.append(kind)
    assert len(fresh) > groups / 2
    return sum(fresh) / len(fresh)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_on_policy_is_the_share_of_fresh_pairs(
    share: float, glyphs_draft: Callable[..., Any], glyphs_tools: Callable[..., Any]
) -> None:
    """Within four standard deviations of 100 draws; exact at both ends."""
    stage = stage_of(pairs="mixed", on_policy=share, samples=4)
    draft, tools = glyphs_draft(), glyphs_tools()
    tools.clean = draft.prompt.media[0]
    found = share_of_fresh(stage, draft, tools)
    assert abs(found - share) <= 4 * (share * (1 - share) / 100) ** 0.5


def test_the_ends_of_the_mix_are_the_pure_kinds(play: Callable[..., Any]) -> None:
    for share, pure in ((1.0, "online"), (0.0, "recorded")):
        mixed = play("dpo", pairs="mixed", on_policy=share, samples=4).one
        alone = play("dpo", pairs=pure, samples=4).one
        assert [r.text for r in mixed.responses] == [r.text for r in alone.responses]


def test_reuse_replay_and_staleness_reach_the_stage() -> None:
    stage = stage_of(uses=3, replay=0.25, max_lag=2)
    assert (stage.uses, stage.replay, stage.max_lag, stage.freshness) == (3, 0.25, 2, 2)
    plain = stage_of()
    assert (plain.uses, plain.replay, plain.freshness, plain.order) == (1, 0.0, None, InOrder())
    assert not {"uses", "replay", "max_lag", "order"} & {line.split()[0] for line in stage_lines(plain, 1, 1)}


@pytest.mark.parametrize(
    ("pairs", "difficulty"),
    [
        ("online", "entropy"),
        ("online", "score_gap"),
        ("recorded", "entropy"),
        ("recorded", "reference_gap"),
        ("recorded", "strength"),
        ("mixed", "entropy"),
        ("mixed", "score_gap"),
        ("mixed", "reference_gap"),
        ("mixed", "strength"),
    ],
)
def test_an_order_is_surveyed_by_its_difficulty(pairs: str, difficulty: Key) -> None:
    params: dict[str, Any] = {"pairs": pairs, "difficulty": difficulty, "samples": 4, "parts": 2}
    if pairs == "mixed":
        params["on_policy"] = 0.5
    easy, hard = (stage_of(order=order, **params).order for order in ("easy_to_hard", "hard_to_easy"))
    assert easy == EasyToHard(4, difficulty, 2) and hard == HardToEasy(4, difficulty, 2)
    assert easy([0.1, 0.9, 0.2, 0.8]) == [0, 2, 1, 3] and hard([0.1, 0.9, 0.2, 0.8]) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": "mixed"}, "pairs='mixed' needs on_policy"),
        ({"pairs": "mixed", "on_policy": 1.5}, r"expected a probability, got 1.5"),
        ({"on_policy": 0.5}, r"on_policy=0.5 mixes .* but pairs='online' takes one kind; set pairs='mixed'"),
        ({"pairs": "recorded", "on_policy": 0.0}, "but pairs='recorded' takes one kind"),
        ({"pairs": "recorded", "max_lag": 1}, "max_lag bounds the age of fresh pairs, and recorded ones"),
        ({"max_lag": -1}, "max_lag: expected at least 0 published versions, got -1"),
        ({"uses": 0}, "uses >= 1"),
        ({"replay": 1.0}, "0 <= replay < 1"),
        ({"difficulty": "entropy"}, "orders nothing with order='data'; set order"),
        ({"order": "easy_to_hard"}, "order='easy_to_hard' needs difficulty"),
        (
            {"order": "easy_to_hard", "difficulty": "length"},
            "difficulty: Input should be 'entropy', 'score_gap'",
        ),
        ({"order": "easy_to_hard", "difficulty": "entropy", "parts": 0}, "parts=.*at least 1, got 0"),
        (
            {"order": "hard_to_easy", "difficulty": "score_gap", "pairs": "recorded"},
            "compares fresh answers, which pairs='recorded' does not train on; use reference_gap",
        ),
        (
            {"order": "hard_to_easy", "difficulty": "reference_gap"},
            "is that of a recorded pair, which pairs='online' does not train on; use score_gap",
        ),
        ({"order": "easy_to_hard", "difficulty": "strength"}, "is that of a recorded pair"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("dpo", params)
