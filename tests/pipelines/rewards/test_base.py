"""One call for rewards of every kind: dispatch, failures, clocks, and rewards that a function builds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.rewards import judge_group, load_reward
from pipelines.rewards.aggregate import WeightedSum
from pipelines.rewards.clock import Clock, at, number
from pipelines.settings import Settings, SettingsError
from pipelines.types import Media, Score


def plain(prompt: Any, response: Any) -> Score:
    return Score(value=float(len(response.text)))


async def seeing(prompt: Any, response: Any, media: Any) -> Score:
    await asyncio.sleep(0)
    return Score(value=float(sum(m.payload.sum() for m in media.values())))


class Whole:
    def group(self, rollouts: Any, media: Any) -> list[Score]:
        return [Score(value=float(len(rollouts))) for _ in rollouts]


class WholeLater:
    async def group(self, rollouts: Any, media: Any) -> list[Score]:
        return [Score(value=-float(len(rollouts))) for _ in rollouts]


def test_every_kind_of_reward_is_called_as_it_asks(rollout, group):
    pixel = Media(kind="image", space="rgb8", payload=np.full((1, 1, 3), 2, np.uint8))
    two = [rollout("a"), rollout("bb")]
    assert [s.value for s in group(plain, two)] == [1.0, 2.0]
    assert [s.value for s in group(Whole(), two)] == [2.0, 2.0]
    assert [s.value for s in group(WholeLater(), two)] == [-2.0, -2.0]
    seen = asyncio.run(judge_group(seeing, two, {pixel.digest: pixel}))
    assert [s.value for s in seen] == [6.0, 6.0]


def test_one_failure_stays_with_its_answer(rollout, group):
    def picky(prompt: Any, response: Any) -> Any:
        if response.text == "b":
            raise ValueError("no b")
        return 3.0 if response.text == "c" else Score(value=1.0)

    scores = group(picky, [rollout("a"), rollout("b"), rollout("c")])
    assert scores[0] == Score(value=1.0)
    assert scores[1].missing == "reward_raised: ValueError: no b"
    assert scores[2].missing == "reward_returned: float, expected a Score"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [([], "0 scores for 2"), ([Score(value=1.0)] * 3, "3 scores for 2"), (None, "TypeError")],
)
def test_a_group_reward_that_breaks_its_promise_is_missing_for_all(rollout, group, returned, reason):
    class Broken:
        def group(self, rollouts: Any, media: Any) -> Any:
            return returned

    scores = group(Broken(), [rollout(), rollout()])
    assert len(scores) == 2 and all(s.value is None and reason in str(s.missing) for s in scores)


@dataclass(frozen=True)
class Threshold:
    least: float | Clock
    calls: list[float] = field(default_factory=list)

    def __call__(self, prompt: Any, response: Any) -> Score:
        return Score(value=float(len(response.text) >= number(self.least)))


def test_a_clock_is_read_at_the_step_of_the_group(rollout, group):
    ramp = Clock({0: 1, 10: 3})
    reward = WeightedSum({"long": Threshold(ramp)}, {"long": Clock({0: 2.0, 20: 5.0})})
    values = {step: group(reward, [rollout("ab"), rollout("abc")], step) for step in (0, 9, 10, 20)}
    assert {step: [s.value for s in scores] for step, scores in values.items()} == {
        0: [2.0, 2.0],
        9: [2.0, 2.0],
        10: [0.0, 2.0],
        20: [0.0, 5.0],
    }
    assert "TypeError" in str(group(Threshold(Clock({0: 1})).__call__, [rollout()])[0].missing)


def test_what_has_no_clock_keeps_its_identity_and_so_its_state():
    inner = Threshold(2.0)
    whole = WeightedSum({"a": inner, "b": Threshold(Clock({0: 1}))})
    assert at(inner, 5) is inner
    assert at(whole, 5) is not whole and at(whole, 5).components["a"] is inner
    assert at(whole, 5).components["b"] == Threshold(1)
    with pytest.raises(ValueError, match="one of them 0"):
        Clock({5: 1.0})


BUILDERS = """
from pipelines.rewards.rules import ExactMatch, Length
from pipelines.rewards.aggregate import WeightedSum
def composed():
    return WeightedSum({"right": ExactMatch(), "length": Length()}, {"length": -0.5})
def raises():
    raise RuntimeError("no key")
def number():
    return 3
def slow():
    class Slow:
        async def group(self, rollouts, media):
            import asyncio
            await asyncio.sleep(60)
    return Slow()
def anything(*arguments):
    return 1.0
"""


def built(folder: Path, name: str, timeout_s: int = 5) -> Any:
    (folder / "mine.py").write_text(BUILDERS)
    rollout_settings = {"reward_timeout_s": timeout_s}
    return load_reward(Settings(reward=f"{folder}/mine.py:{name}", rollout=rollout_settings))  # pyright: ignore


def test_a_function_without_arguments_builds_the_reward(tmp_path, rollout, group):
    scores = group(built(tmp_path, "composed"), [rollout("yes", answer="yes"), rollout("no", answer="yes")])
    assert [s.value for s in scores] == [1 - 1.5, -1.5]
    everything = group(built(tmp_path, "anything"), [rollout()])  # takes both forms: it is the reward
    assert everything[0] == Score(value=1.0)


@pytest.mark.parametrize(
    ("name", "part"), [("raises", "building it failed: RuntimeError: no key"), ("number", "got a int")]
)
def test_a_builder_that_fails_is_one_clear_error(tmp_path, name, part):
    with pytest.raises(SettingsError, match=part):
        built(tmp_path, name)


def test_a_built_reward_has_a_deadline(tmp_path, rollout, group):
    from dataclasses import replace

    late = replace(built(tmp_path, "slow"), timeout_s=0.05)
    assert group(late, [rollout()])[0].missing == "reward_timed_out: no answer after 0.05 s"
