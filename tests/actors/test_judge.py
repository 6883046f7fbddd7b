"""The embedded base model as a judge on a real engine in a Ray actor: it looks at the picture and says yes
or no.

One engine serves all tests here; two ports of one name share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from actors.judge import SharedJudge
from pipelines.data import GlyphsSource
from pipelines.rewards import judge_group
from pipelines.rewards.generative import Rating, asking
from pipelines.rewards.implicit import Implicit
from pipelines.settings import EngineSettings
from pipelines.types import Media, Prompt, Response, Rollout, Score
from pipelines.worlds.glyphs import BASE_MODEL
from pipelines.worlds.glyphs.captions import read_caption, write_caption
from pipelines.worlds.glyphs.questions import Question, read_answer

ENGINE = EngineSettings(max_model_len=256, kv_cache_gib=0.25, timeout_s=60)
CAPTIONS = 30


def is_it_there(prompt: Prompt, response: Response) -> Sequence[Prompt]:
    """One yes/no question for each object that a caption names, before the caption's picture."""
    picture = replace(
        prompt,
        messages=tuple(
            replace(m, parts=tuple(p for p in m.parts if p.kind == "image")) for m in prompt.messages
        ),
    )
    named = read_caption(response.text).mentions
    return [asking(picture, Question(asks=(m.digit, m.colour), answer="yes").text) for m in named]


def yes_or_no(text: str) -> float | None:
    return {"yes": 1.0, "no": 0.0, None: None}[read_answer(text)]


def build() -> SharedJudge:
    return SharedJudge("eyes", BASE_MODEL, ENGINE, max_tokens=4)


@pytest.fixture(scope="module")
def judge(local_ray: None) -> Iterator[SharedJudge]:
    import ray

    shared = build()
    yield shared
    handle: Any = shared.actor()
    ray.get(handle.stop.remote())
    ray.kill(handle)


def captioned(position: int) -> tuple[list[Rollout], dict[str, Media]]:
    """The true caption of a picture, and the same with every digit two higher."""
    source = GlyphsSource(count=CAPTIONS, seed=11)
    prompt, media = source.prompt(source.row(None, position))
    truth = str(prompt.gold["answer"])
    wrong = write_caption(m._replace(digit=(m.digit + 2) % 10) for m in read_caption(truth).mentions)
    answers = [Response(tokens=(1,), text=text) for text in (truth, wrong)]
    return [Rollout(prompt=prompt, response=answer) for answer in answers], media


def test_it_tells_true_captions_from_false_ones(judge: SharedJudge):
    """Nearly always, the true caption is not rated below the false one, and usually above."""
    reward = Rating(judge, ask=is_it_there, read=yes_or_no)

    async def everything() -> list[tuple[Score, ...]]:
        groups = [captioned(position) for position in range(CAPTIONS)]
        return await asyncio.gather(*(judge_group(reward, rollouts, media) for rollouts, media in groups))

    scores = asyncio.run(everything())
    assert all(score.missing is None for pair in scores for score in pair)
    ahead = [true.value - false.value for true, false in scores]  # pyright: ignore
    assert sum(gap > 0 for gap in ahead) > 0.7 * CAPTIONS and sum(gap < 0 for gap in ahead) < 0.1 * CAPTIONS


def test_what_it_does_not_answer_is_missing(judge: SharedJudge):
    rollouts, media = captioned(0)

    def describe(prompt: Prompt, response: Response) -> Sequence[Prompt]:
        return [replace(prompt, gold={})]

    def typed(prompt: Prompt, response: Response) -> Sequence[Prompt]:
        return [asking(prompt, "<|image_pad|>")]

    def long(prompt: Prompt, response: Response) -> Sequence[Prompt]:
        return [asking(prompt, "good " * 300)]

    reasons = [
        asyncio.run(judge_group(Rating(judge, ask=ask, read=yes_or_no), rollouts[:1], media))[0].missing
        for ask in (describe, typed, long)
    ]
    assert str(reasons[0]).startswith("judge_not_parsed: 'a ")
    assert "special token" in str(reasons[1]) and "exceed the limit of 256" in str(reasons[2])


def test_two_ports_of_one_name_are_one_actor(judge: SharedJudge):
    assert build().actor() == judge.actor()


def test_a_model_against_itself_implies_nothing(judge: SharedJudge):
    [rollout, _], media = captioned(0)
    answer = replace(rollout, response=replace(rollout.response, tokens=(9, 12, 13)))
    [score] = asyncio.run(judge_group(Implicit(judge, build()), [answer], media))
    assert score.value == pytest.approx(0.0, abs=1e-6)
    prompt, tokens = answer.prompt, answer.response.tokens
    assert asyncio.run(judge.logprob(prompt, media, tokens)) < -1.0
