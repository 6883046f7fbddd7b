"""Judges that answer in words: both orders, abstentions, parse failures; the model is a table here, since
the protocol is what is tested (tests/actors/test_judge.py asks a real one)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipelines.rewards.generative import (
    Duel,
    DuelFactory,
    Rating,
    ReadAspects,
    ReadRating,
    Tournament,
    ask_which,
    asking,
    read_choice,
)
from pipelines.types import Message, Part, Prompt


class Says:
    """A judge that is a function of the question's text."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self._answer = answer
        self.questions: list[tuple[Prompt, int]] = []

    async def complete(self, prompt: Prompt, media: Any, n: int, seed: int) -> Sequence[str]:
        self.questions.append((prompt, seed))
        answer = self._answer(prompt.messages[0].parts[-1].text)
        return list(answer) if isinstance(answer, list) else [answer] * n


def prefers(order: str) -> Callable[[str], str]:
    """A consistent judge: the answer that comes first in `order` wins wherever it stands."""

    def answer(question: str) -> str:
        a = question.split("Answer A:\n")[1][0]
        b = question.split("Answer B:\n")[1][0]
        return "[[A]]" if order.index(a) < order.index(b) else "[[B]]"

    return answer


def always(text: str) -> Callable[[str], str]:
    return lambda question: text


def test_a_question_shows_what_the_user_showed():
    parts = (Part(kind="image", digest="d"), Part(kind="text", text="what?"))
    system = Message(role="system", parts=(Part(kind="text", text="be good"),))
    prompt = Prompt(id="p", messages=(system, Message(role="user", parts=parts)), gold={"answer": "7"})
    question = asking(prompt, "Rate it.")
    assert question.media == ("d",) and question.gold == {}  # the gold answer never reaches a judge
    assert [part.text for part in question.messages[0].parts] == ["", "what?", "Rate it."]
    shown = ask_which(prompt, "one", "two").messages[0].parts[-1].text
    assert shown.index("Answer A:\none") < shown.index("Answer B:\ntwo")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I first thought [[A]], but [[ b ]]", "second"),
        ("[[tie]]", "tie"),
        ("[[C]]", "tie"),
        ("[[?]]", None),
        ("A is better", None),
        ("[[D]]", None),
    ],
)
def test_choices(text, verdict):
    assert read_choice(text) == verdict


def test_ratings_and_aspects():
    read = ReadRating(1, 10)
    assert [read(t) for t in ("[[7]]", "[[3]] no, [[ 4.5 ]]", "[[11]]", "7", "[[7]] or [[?]]")] == [
        7.0,
        4.5,
        None,
        None,
        None,
    ]
    aspects = ReadAspects(("helpful", "correct"), 1, 5)
    assert aspects("Helpful: 4\n**correct** - 2.5 of 5") == {"helpful": 4.0, "correct": 2.5}
    assert aspects("helpful: 4") is None and aspects("helpful: 4, correct: 6") is None


def test_a_rating_is_the_mean_of_what_can_be_read(rollout, group):
    judge = Says(lambda q: ["[[4]]", "no idea", "[[6]]"])
    score = group(Rating(judge, votes=3), [rollout("x")])[0]
    assert score.value == 5.0 and score.confidence == pytest.approx(2 / 3)
    lost = group(Rating(Says(always("I would rather not say"))), [rollout("x")])[0]
    assert lost.value is None and str(lost.missing).startswith("judge_not_parsed: 'I would")
    assert group(Rating(judge, ask=lambda p, r: ()), [rollout()])[0].missing == "judge_was_not_asked"
    vector = group(
        Rating(Says(always("helpful: 4, correct: 2")), read=ReadAspects(("helpful", "correct"))), [rollout()]
    )[0]
    assert vector.value == 6.0 and vector.parts == {"helpful": 4.0, "correct": 2.0}


def test_a_judge_that_fails_is_missing(rollout, group):
    def fails(question: str) -> str:
        raise TimeoutError("engine")

    assert group(Rating(Says(fails)), [rollout()])[0].missing == "reward_raised: TimeoutError: engine"
    duels = group(Tournament(Duel(Says(fails))), [rollout("a"), rollout("b")])
    assert [s.missing for s in duels] == ["no_duel_decided"] * 2


def test_a_tournament_with_a_consistent_judge(rollout, group):
    """b beats a and c, a beats c: shares 1/2, 1, 0."""
    judge = Says(prefers("bac"))
    scores = group(Tournament(Duel(judge)), [rollout(t) for t in "abc"])
    assert [s.value for s in scores] == [0.5, 1.0, 0.0] and len(judge.questions) == 6
    first = list(judge.questions)
    group(Tournament(Duel(judge)), [rollout(t) for t in "abc"])
    assert judge.questions[6:] == first  # the same questions with the same seeds


def test_position_bias_is_a_tie_or_an_abstention(rollout, group):
    two = [rollout("a"), rollout("b")]
    assert [s.value for s in group(Tournament(Duel(Says(always("[[A]]")))), two)] == [0.5, 0.5]
    strict = Tournament(Duel(Says(always("[[A]]")), inconsistent="abstain"))
    assert [s.missing for s in group(strict, two)] == ["no_duel_decided"] * 2
    assert [s.value for s in group(Tournament(Duel(Says(always("[[tie]]")))), two)] == [0.5, 0.5]


def test_an_abstention_in_one_order_decides_nothing_and_equal_texts_tie(rollout, group):
    half = Says(lambda q: "[[A]]" if "Answer A:\na" in q else "[[?]]")
    scores = group(Tournament(Duel(half)), [rollout("a"), rollout("b")])
    assert [s.value for s in scores] == [None, None]
    three = group(Tournament(Duel(half)), [rollout("a"), rollout("b"), rollout("a", tokens=4)])
    assert [s.value for s in three] == [0.5, None, 0.5] and three[0].confidence == 0.5


def test_random_duels_are_drawn_from_a_seed(rollout, group):
    judge = Says(prefers("abcdef"))
    tournament = Tournament(Duel(judge), most=4, seed=1)
    scores = group(tournament, [rollout(t) for t in "abcdef"])
    assert len(judge.questions) == 8
    assert scores == group(tournament, [rollout(t) for t in "abcdef"])


def test_the_factory_pairs_the_best_winner_with_the_worst_loser(rollout, told, group):
    """Whatever the duels are, a always wins its own and f loses its own; ratings decide among the rest."""
    ratings = told(dict(zip("abcdef", (9.0, 8.0, 5.0, 4.0, 2.0, 1.0), strict=True)))
    factory = DuelFactory(Duel(Says(prefers("abcdef"))), ratings, seed=3)
    scores = group(factory, [rollout(t) for t in "abcdef"])
    scored = {"abcdef"[i]: s.value for i, s in enumerate(scores) if s.value is not None}
    assert scored == {"a": 9.0, "f": 1.0}
    assert {s.missing for s in scores if s.value is None} == {"not_chosen_by_duels"}


def test_the_factory_skips_what_is_not_strictly_higher(rollout, told, group):
    two = [rollout("a"), rollout("b")]
    for ratings in ({"a": 5.0, "b": 5.0}, {"a": 4.0, "b": 5.0}, {"a": None, "b": 5.0}):
        scores = group(DuelFactory(Duel(Says(prefers("ab"))), told(ratings)), two)
        assert [s.missing for s in scores] == ["not_chosen_by_duels"] * 2
    tied = group(DuelFactory(Duel(Says(always("[[tie]]"))), told({"a": 9.0, "b": 1.0})), two)
    assert [s.value for s in tied] == [None, None]
