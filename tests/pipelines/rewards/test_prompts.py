"""What a judge or reward model is shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipelines.rewards.implicit import Implicit
from pipelines.rewards.prompts import Augmented, WithContext, WithDirection, WithFacts, WithShots
from pipelines.types import Message, Part, Prompt, Response, Score


def prompt(**gold: Any) -> Prompt:
    parts = (Part(kind="image", digest="d"), Part(kind="text", text="what?"))
    system = Message(role="system", parts=(Part(kind="text", text="old"),))
    return Prompt(id="p", messages=(system, Message(role="user", parts=parts)), gold=gold)


def text(shown: Prompt) -> list[tuple[str, str]]:
    return [(m.role, "".join(part.text for part in m.parts)) for m in shown.messages]


def test_facts_follow_the_question():
    shown = WithFacts(("captions", "options"))(
        prompt(captions=["a red seven", "a blue one"], options="A or B")
    )
    facts = "what?\nFacts about the image:\na red seven\na blue one\nA or B"
    assert text(shown) == [("system", "old"), ("user", facts)] and shown.media == ("d",)
    with pytest.raises(ValueError, match="prompt 'p': none of its gold columns"):
        WithFacts()(prompt())


def test_the_judged_prompt_changes_and_the_answer_does_not(rollout, group):
    seen: list[Any] = []

    def reward(shown: Prompt, response: Response) -> Score:
        seen.append((text(shown)[-1][1], response.text))
        return Score(value=1.0)

    augmented = Augmented(reward, WithFacts(("facts",)))
    answer = rollout("an answer", facts=["sky is blue"])
    assert group(augmented, [answer])[0].value == 1.0
    assert seen == [("what?\nFacts about the image:\nsky is blue", "an answer")]
    assert "none of its gold columns" in str(group(augmented, [rollout()])[0].missing)


def test_contexts_directions_and_shots_replace_the_system_message():
    assert text(WithContext("")(prompt()))[0] == ("system", "")
    said = text(WithDirection(30, "help", "brevity")(prompt()))
    assert said[0][1] == "Answer so as to maximise 87 * help + 50 * brevity." and len(said) == 2
    shots = [{"question": f"q{i}", "preferred": "a", "dispreferred": "b"} for i in range(5)]
    shown = text(WithShots(4)(prompt(shots=shots)))[0][1]
    assert shown.count("Question:") == 4 and "q4" not in shown
    with pytest.raises(ValueError, match="2 shots, expected at least 4"):
        WithShots(4)(prompt(shots=shots[:2]))


class Fixed:
    def __init__(self, per_token: float) -> None:
        self._per_token = per_token

    async def logprob(self, prompt: Any, media: Any, tokens: Any) -> float:
        return self._per_token * len(tokens)


def test_the_implicit_reward(rollout):
    """0.5 * (3 * -1 - 3 * -1.4) = 0.6; a model against itself is 0."""
    answer = rollout("x", tokens=3)
    reward = Implicit(Fixed(-1.0), Fixed(-1.4), beta=0.5)
    score = asyncio.run(reward(answer.prompt, answer.response, {}))
    assert score.value == pytest.approx(0.6)
    assert asyncio.run(Implicit(Fixed(-1.0), Fixed(-1.0))(answer.prompt, answer.response, {})).value == 0.0
    empty = rollout("", tokens=0)
    assert asyncio.run(reward(empty.prompt, empty.response, {})).missing == "empty_response"
