"""Steps that choose, label, gate and mix."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.programs.choosing import (
    Choose,
    Distinct,
    Gated,
    Kept,
    Label,
    NeedsParts,
    Pairs,
    Ranked,
    Unlike,
)
from pipelines.programs.judging import Agreement, AskVerdict, Duels
from pipelines.programs.mixing import Either, Otherwise, When
from pipelines.programs.repeating import ForEach
from pipelines.rewards.gates import LengthRatio, MinGap
from pipelines.rollout import Draft, Drop, Step
from pipelines.types import Message, Part, Prompt, Response, Rollout, Score

PROMPT = Prompt(id="row", messages=(Message(role="user", parts=(Part(kind="text", text="which ?"),)),))


def scored(values: Sequence[float | None], **sets: tuple[int, ...]) -> Draft:
    """Answers y0, y1, ... with these scores; answer i has i + 1 tokens."""
    return Draft(
        prompts={"x": PROMPT},
        media={},
        rollouts=tuple(
            Rollout(prompt=PROMPT, response=Response(tokens=tuple(range(i + 1)), text=f"y{i}"))
            for i in range(len(values))
        ),
        scores=tuple(
            Score(value=None, missing="lost") if v is None else Score(value=v, parts={"a": v, "b": -v})
            for v in values
        ),
        sets={"y": tuple(range(len(values))), **sets},
    )


def run(step: Step, draft: Draft, tools: Any = None, seed: int = 5) -> Draft:
    return asyncio.run(step(draft, tools, seed))


def reason(step: Step, draft: Draft, tools: Any = None) -> str:
    with pytest.raises(Drop) as caught:
        run(step, draft, tools)
    return caught.value.reason


def test_the_worst_may_come_from_another_set() -> None:
    draft = scored([1.0, 5.0, 0.0, 2.0], g=(0, 1), z=(2, 3))
    done = run(Choose(of="g", against="z"), draft)
    assert done.chosen == {"w": 1, "l": 2}
    assert reason(Choose(of="z", against="g"), scored([3.0, 5.0, 0.0, 2.0], g=(0, 1), z=(2, 3))) == "tie"
    assert reason(Choose(of="g", against="z"), scored([1.0, None], g=(0,), z=(1,))) == "missing_score"


def test_ranks_are_spread_below_the_best() -> None:
    """Two share the best score, so b, c, d come from the five below: the first, the middle, the last."""
    done = run(Ranked(), scored([3.0, 9.0, 1.0, 9.0, 4.0, 2.0, 0.0]))
    assert done.chosen == {"a": 1, "b": 4, "c": 5, "d": 6}
    assert run(Ranked(names=("a", "d")), scored([3.0, 9.0, 1.0])).chosen == {"a": 1, "d": 2}


@given(st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=9))
def test_ranks_fall_or_the_group_is_dropped(values: list[int | None]) -> None:
    known = [value for value in values if value is not None]
    draft = scored([None if value is None else float(value) for value in values])
    below = sum(value < max(known) for value in known) if known else 0
    if below < 3:
        assert reason(Ranked(), draft) in ("tie", "missing_score", "too_few_responses")
        return
    chosen = run(Ranked(), draft).chosen
    ranked = [values[chosen[name]] for name in "abcd"]
    assert len(set(chosen.values())) == 4 and ranked == sorted(ranked, reverse=True)  # type: ignore[type-var]
    assert (ranked[0], ranked[-1]) == (max(known), min(known)) and ranked[1] < ranked[0]  # type: ignore[operator]


def test_labels_need_no_pairs() -> None:
    draft = scored([1.0, None, 3.0, 2.0])
    assert {k: v for k, v in run(Label(2.0), draft).sets.items() if k != "y"} == {"good": (2, 3), "bad": (0,)}
    assert run(Label(), draft).sets["good"] == (2, 3)  # the mean is 2
    assert run(Label(9.0), draft).sets["good"] == ()
    assert reason(Label(), scored([None])) == "missing_score"


def test_kept_answers() -> None:
    draft = scored([1.0, None, 3.0, 2.0])
    assert run(Kept(2.0), draft).sets["kept"] == (2, 3)
    assert run(Kept(2.0, best_only=True), draft).sets["kept"] == (2,)
    assert run(Kept(2.0, some_below=True), draft).sets["kept"] == (2, 3)
    assert reason(Kept(1.0, some_below=True), draft) == "all_good_enough"
    assert reason(Kept(4.0), draft) == "none_good_enough"


def test_gates_name_why() -> None:
    draft = run(Choose(), scored([1.0, 5.0, 4.0]))
    assert run(Gated((MinGap(4.0),)), draft) is draft
    assert reason(Gated((MinGap(4.0), LengthRatio(1.5))), draft) == "length_ratio"
    assert reason(Gated((MinGap(4.5), LengthRatio(1.5))), draft) == "gap_too_small"


def test_pairs_meet_from_both_ends() -> None:
    draft = scored([1.0, 5.0, 4.0, None, 0.0])
    done = run(Pairs((MinGap(2.0),), most=3), draft)
    assert (done.sets["w"], done.sets["l"]) == ((1, 2), (4, 0))
    assert done.chosen == {"w": 1, "l": 4}
    assert reason(Pairs((MinGap(9.0),)), draft) == "gap_too_small"


def test_pairs_of_a_set_that_does_not_start_at_zero() -> None:
    done = run(Pairs((MinGap(1.0),), of="z"), scored([9.0, 9.0, 1.0, 2.0], z=(2, 3)))
    assert (done.sets["w"], done.sets["l"]) == ((3,), (2,))


def test_missing_parts_are_an_error_and_missing_scores_are_not() -> None:
    draft = scored([1.0, None])
    assert run(NeedsParts(("a", "b")), draft) is draft
    with pytest.raises(
        ValueError, match=r"reads the score parts \['c'\], but the reward gives only \['a', 'b'\]"
    ):
        run(NeedsParts(("a", "c")), draft)


def test_distinct_answers_of_a_set() -> None:
    """Of "a b", "b a", "c", "a b d" in the set the second has the words of the first; the last shares two of
    its three with it, so 2/3 of the words; answer 0 has the same words, but is not in the set."""
    texts = ("a b", "a b", "b a", "c", "a b d")
    plain = scored([1.0] * 5, y=(1, 2, 3, 4))
    rollouts = tuple(
        replace(rollout, response=replace(rollout.response, text=text))
        for rollout, text in zip(plain.rollouts, texts, strict=True)
    )
    draft = replace(plain, rollouts=rollouts)
    assert run(Distinct(), draft).sets == {"y": (1, 3, 4)}
    assert run(Distinct(most=0.6, name="kept"), draft).sets == {"y": (1, 2, 3, 4), "kept": (1, 3)}
    assert Distinct().makes == {"y"} and Distinct(name="kept").makes == {"kept"}
    assert reason(Distinct(), replace(draft, sets={"y": (0, 1, 2)})) == "too_similar"
    assert reason(Distinct(), replace(draft, sets={"y": (0,)})) == "too_few_responses"
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got 1\.5"):
        Distinct(most=1.5)


def test_unlike_answers() -> None:
    draft = scored([1.0, 5.0], w=(0,), l=(1,))
    chosen = Draft(**{**vars(draft), "chosen": {"w": 0, "l": 1}})
    assert run(Unlike(), chosen) is chosen
    assert reason(Unlike(), Draft(**{**vars(draft), "chosen": {"w": 0, "l": 0}})) == "same_response"


def test_judges_agree_or_not() -> None:
    """Part a prefers the better answer, part b the other one; "-b" prefers the better one as well."""
    draft = run(Choose(), scored([1.0, 5.0]))
    assert run(Agreement(("a", "-b"), agree=True), draft) is draft
    assert reason(Agreement(("a", "b"), agree=True), draft) == "judges_disagree"
    assert run(Agreement(("a", "b"), agree=False), draft) is draft
    assert reason(Agreement(("a",), agree=False), draft) == "judges_agree"


class Comparing:
    """A judge that sees pairs: the shorter answer wins, unless it is y0."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []

    async def score(self, rollouts: Sequence[Rollout], media: Any) -> list[Score]:
        self.groups.append([r.response.text for r in rollouts])
        return [Score(value=0.0 if r.response.text == "y0" else -len(r.response.tokens)) for r in rollouts]


def test_duels_are_judged_in_twos() -> None:
    judge = Comparing()
    done = run(Duels(), scored([None] * 7), judge)
    assert all(len(group) == 2 for group in judge.groups) and len(judge.groups) == 3
    for winner, loser in zip(done.sets["winners"], done.sets["losers"], strict=True):
        assert winner < loser and sorted((f"y{winner}", f"y{loser}")) in [sorted(g) for g in judge.groups]


@given(st.integers(0, 10_000))
def test_verdicts_follow_the_order(seed: int) -> None:
    draft = Draft(**{**vars(scored([1.0, 5.0])), "chosen": {"w": 1, "l": 0}})
    prompt = run(AskVerdict(template="{first} or {second}"), draft, seed=seed).prompts["judge"]
    asked = prompt.messages[0].parts[0].text
    assert asked == ("which ? y1 or y0" if prompt.gold["verdict"] == "yes" else "which ? y0 or y1")


def test_either_follows_its_probability() -> None:
    """Over 400 seeds the share of the first program is within 4 standard errors of 0.3."""
    first, second = Choose(best="w"), Choose(best="v", worst="l")
    draft = scored([1.0, 5.0])
    drawn = ["w" in run(Either(0.3, first, second), draft, seed=seed).chosen for seed in range(400)]
    assert abs(sum(drawn) / 400 - 0.3) < 4 * (0.21 / 400) ** 0.5
    assert Either(0.3, first, second).makes == {"l"}
    with pytest.raises(ValueError, match=r"expected a probability, got 1\.5"):
        Either(1.5, first, second)


def test_when_reads_a_column() -> None:
    step = When("kind", ("math",), Choose(), Ranked(names=("w", "l")))
    draft = scored([1.0, 5.0])
    math = Prompt(id="row", messages=PROMPT.messages, gold={"kind": "math"})
    assert run(step, Draft(**{**vars(draft), "prompts": {"x": math}})).chosen == {"w": 1, "l": 0}
    assert run(step, draft).chosen == {"w": 1, "l": 0}
    assert reason(When("kind", ("math",), Choose(), Kept(9.0)), draft) == "none_good_enough"


def test_otherwise_takes_over_for_its_reasons_alone() -> None:
    step = Otherwise(Kept(9.0, name="w"), Label(0.0, good="w"), frozenset({"none_good_enough"}))
    assert run(step, scored([1.0])).sets["w"] == (0,)
    assert step.makes == {"w"}
    assert reason(step, scored([None])) == "missing_score"


def test_for_each_numbers_the_prompts_it_makes() -> None:
    class Say(Step):
        async def __call__(self, draft: Draft, tools: Any, seed: int) -> Draft:
            said = Part(kind="text", text=draft.rollout("l").response.text)
            prompt = Prompt(id="row", messages=(Message(role="user", parts=(said,)),))
            return draft.with_prompt("m", prompt)

    done = run(ForEach(("l",), Say()), scored([1.0, 2.0, 3.0], l=(2, 0)))
    assert [done.prompts[f"m/{i}"].messages[0].parts[0].text for i in range(2)] == ["y2", "y0"]
    assert "m" not in done.prompts
