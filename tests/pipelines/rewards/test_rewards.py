"""Rewards: exact numbers of the verifier, a control without information, and functions that misbehave."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data import GlyphsSource
from pipelines.rewards import judge_group, load_reward
from pipelines.rewards.random import Random
from pipelines.rewards.user import User, as_score
from pipelines.rewards.world import World
from pipelines.settings import Settings, SettingsError, load
from pipelines.types import Message, Part, Prompt, Response, Rollout, Score
from pipelines.worlds.glyphs import Glyphs

PROMPT = Prompt(
    id="p",
    messages=(Message(role="user", parts=(Part(kind="image", digest="d"), Part(kind="text", text="what?"))),),
    gold={"truth": {"n": 1}},
)


def answer(text: str = "x", tokens: tuple[int, ...] = (1,)) -> Response:
    return Response(tokens=tokens, text=text)


async def judge(reward: Any, prompt: Prompt, response: Response) -> Score:
    [score] = await judge_group(reward, [Rollout(prompt=prompt, response=response)], {})
    return score


def scored(function: Callable[..., Any], timeout_s: float = 5) -> Score:
    return asyncio.run(judge(User(function, timeout_s), PROMPT, answer("yes")))


def test_the_verifier_counts_captions() -> None:
    source = GlyphsSource(count=1, seed=3)
    prompt, _ = source.prompt(source.row(None, 0))
    right = str(prompt.gold["answer"])
    objects = right.count("top") + right.count("bottom")
    best = World()(prompt, answer(right))
    assert best == Score(
        value=float(objects), parts={"right": objects, "wrong": 0, "missed": 0, "malformed": 0}
    )
    nothing = World()(prompt, answer("no idea"))
    assert nothing.value == -objects - 2  # all missed; one clause outside the grammar and no final stop
    assert nothing.parts["missed"] == objects


@pytest.mark.parametrize("truth", ["yes", "no"])
def test_the_verifier_judges_yes_and_no(truth: str) -> None:
    row = next(r for r in Glyphs().rows("train", 2, 0, "popular") if r["answer"] == truth)
    prompt, _ = GlyphsSource(count=1, seed=0).prompt(row)
    wrong = "no" if truth == "yes" else "yes"
    assert World()(prompt, answer(f"{truth} .")) == Score(value=1.0, parts={"correct": 1.0})
    assert World()(prompt, answer(wrong)) == Score(value=-1.0, parts={"correct": 0.0})
    assert World()(prompt, answer("maybe")).value == -1.0


def test_the_verifier_says_when_a_row_is_not_of_its_world() -> None:
    assert World()(PROMPT, answer()) == Score(value=None, missing="not_a_glyphs_row")


def test_the_control_knows_nothing_but_is_repeatable() -> None:
    """Over 2,000 answers the mean of uniform numbers is 0.5 within 5 errors of 0.2887 / sqrt(2000)."""
    values = np.array([Random(1)(PROMPT, answer("same text", (i,))).value for i in range(2000)], dtype=float)
    assert abs(values.mean() - 0.5) < 5 * 0.2887 / 2000**0.5
    assert Random(1)(PROMPT, answer("other text", (7,))).value == values[7]
    assert Random(2)(PROMPT, answer("", (7,))).value != values[7]


def test_a_function_gets_messages_text_and_row() -> None:
    seen: list[Any] = []

    def function(*arguments: Any) -> float:
        seen.extend(arguments)
        arguments[2]["truth"]["n"] = 99  # a copy: what the reward does to it stays with it
        return 0.25

    assert scored(function) == Score(value=0.25)
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert seen == [[{"role": "user", "content": content}], "yes", {"id": "p", "truth": {"n": 99}}]
    assert PROMPT.gold == {"truth": {"n": 1}}


async def _async_number(prompt: Any, response: str, row: Any) -> float:
    await asyncio.sleep(0)
    return 2.0


class _Callable:
    async def __call__(self, prompt: Any, response: str, row: Any) -> int:
        return 3


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (_async_number, 2.0),
        (_Callable(), 3.0),
        (lambda *_: True, 1.0),
        (lambda *_: np.float32(0.5), 0.5),
        (lambda *_: np.array(4), 4.0),
    ],
)
def test_numbers_of_many_kinds(function: Callable[..., Any], value: float) -> None:
    assert scored(function) == Score(value=value)


def _fail(*_: Any) -> float:
    raise ValueError("no luck")


async def _fail_later(*_: Any) -> float:
    raise KeyError("k")


def _stop(*_: Any) -> float:
    raise StopIteration


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_fail, "reward_raised: ValueError: no luck"),
        (_fail_later, "reward_raised: KeyError: 'k'"),
        (_stop, "reward_raised: StopIteration: "),
        (lambda *_: sys.exit(3), "reward_raised: SystemExit: 3"),
        (lambda *_: float("nan"), "reward_returned: nan, expected a finite number"),
        (lambda *_: float("-inf"), "reward_returned: -inf, expected a finite number"),
        (lambda *_: None, "reward_returned: None, expected a number"),
        (lambda *_: "0.5", "reward_returned: '0.5', expected a number"),
        (lambda *_: [1.0], "reward_returned: list, expected a number"),
        (lambda *_: 10**400, "reward_returned: int, expected a number"),
    ],
)
def test_what_is_no_number_is_missing_with_a_reason_and_never_0(
    function: Callable[..., Any], reason: str
) -> None:
    assert scored(function) == Score(value=None, missing=reason)


def test_a_reward_that_hangs_is_missing_and_the_next_call_still_works() -> None:
    gate = threading.Event()
    calls: list[int] = []

    def hangs_once(*_: Any) -> float:
        calls.append(1)
        if len(calls) == 1:
            gate.wait()
        return 1.0

    async def twice() -> tuple[Score, Score]:
        reward = User(hangs_once, 0.5)
        return await judge(reward, PROMPT, answer()), await judge(reward, PROMPT, answer())

    first, second = asyncio.run(twice())
    gate.set()
    assert first.missing == "reward_timed_out: no answer after 0.5 s"
    assert second.value == 1.0


def test_an_async_reward_that_hangs_is_missing() -> None:
    async def hangs(*_: Any) -> float:
        await asyncio.Event().wait()
        return 1.0

    assert (scored(hangs, 0.05).missing or "").startswith("reward_timed_out")


def test_plain_functions_run_one_at_a_time_and_waiting_for_a_turn_is_not_hanging() -> None:
    """4 calls of 0.9 s with a limit of 3 s each: the last one has its answer after 3.6 s and still scores."""
    running: list[int] = []
    most: list[int] = []

    def slow(*_: Any) -> float:
        running.append(1)
        most.append(len(running))
        time.sleep(0.9)
        running.pop()
        return 1.0

    async def all_at_once() -> list[Score]:
        reward = User(slow, 3.0)
        return await asyncio.gather(*(judge(reward, PROMPT, answer()) for _ in range(4)))

    assert {score.value for score in asyncio.run(all_at_once())} == {1.0}
    assert max(most) == 1


def test_as_score_takes_nothing_for_zero() -> None:
    assert as_score(0).value == 0.0
    assert as_score("").value is None


def test_the_names_of_settings() -> None:
    assert load_reward(Settings()) == World()
    assert load_reward(Settings(reward="random", seed=5)) == Random(5)


def write(folder: Path, text: str, name: str = "mine.py") -> None:
    (folder / name).write_text(text)


def own(reward: str) -> Any:
    return load_reward(load(None, [f"reward={reward}"]))


def test_a_module_of_the_current_directory_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_package").mkdir()
    write(tmp_path / "own_package", "def f(prompt, response, row):\n    return 7\n", "rewards.py")
    for name in ("own_package.rewards:f", f"{tmp_path}/own_package/rewards.py:f", "own_package/rewards.py:f"):
        assert asyncio.run(judge(own(name), PROMPT, answer())).value == 7.0


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        ("", "mine.py:f", "has no 'f'; it has no functions"),
        ("def g(): pass\ndef h(): pass\n", "mine.py:f", "it has g, h"),
        ("f = 3\n", "mine.py:f", "expected a function, got a int"),
        (
            "def f(prompt): pass\n",
            "mine.py:f",
            "expected a function of (prompt, response, row), got f(prompt)",
        ),
        ("1 / 0\n", "mine.py:f", "importing it failed: ZeroDivisionError: division by zero"),
        ("def f(:\n", "mine.py:f", "importing it failed: SyntaxError"),
        ("raise SystemExit(1)\n", "mine.py:f", "importing it failed: SystemExit: 1"),
        ("import no_such_library\n", "mine.py:f", "No module named 'no_such_library'"),
        ("", "none.py:f", "none.py: no such file"),
        ("", "no_such_package.rewards:f", "there is no module 'no_such_package'"),
    ],
)
def test_a_reward_that_cannot_be_used_is_one_clear_error(
    text: str, name: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        own(name)
    assert part in str(caught.value)
