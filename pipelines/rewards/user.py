"""Somebody's own function as a reward: found before anything starts, and unable to break a worker."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from pipelines.rewards.base import AnyReward, is_reward
from pipelines.rewards.threads import WorkFailed, in_thread
from pipelines.types import Prompt, Response, Score
from pipelines.user_files import load_module

Function = Callable[[list[dict[str, Any]], str, dict[str, Any]], Any]


class RewardNotFound(ValueError):
    """A reward that cannot be imported or called; the message says why and what is expected."""


class User:
    """Calls `function(prompt, response, row)`; whatever goes wrong there becomes a *missing* score.

    `prompt` is the list of messages, each {"role", "content"} with a list of parts {"type": "text", "text"}
    or {"type": "image"}; `response` is text; `row` holds the id and the free columns of the data row. All
    three are copies. The result is a number (a bool counts as 1 or 0) or a `Score`. A plain function runs in
    a thread, one call at a time, since nobody promised that it is thread-safe; `async def` functions run
    concurrently.
    """

    def __init__(self, function: Function, timeout_s: float) -> None:
        self.function, self.timeout_s = function, timeout_s
        self._turn = asyncio.Lock()

    async def __call__(self, prompt: Prompt, response: Response) -> Score:
        arguments = (
            messages_of(prompt),
            response.text,
            {"id": prompt.id, **copy.deepcopy(dict(prompt.gold))},
        )
        try:
            result = await self._call(arguments)
            async with asyncio.timeout(self.timeout_s):
                result = await result if inspect.isawaitable(result) else result
        except TimeoutError:
            return Score(value=None, missing=f"reward_timed_out: no answer after {self.timeout_s:g} s")
        except WorkFailed as failure:
            return Score(value=None, missing=_raised(failure.__cause__ or failure))
        except Exception as error:
            return Score(value=None, missing=_raised(error))
        return as_score(result)

    async def _call(self, arguments: tuple[Any, ...]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return self.function(*arguments)
        async with self._turn, asyncio.timeout(self.timeout_s):
            return await in_thread(lambda: self.function(*arguments))


def as_score(result: Any) -> Score:
    """A score from what a function returned; anything but a finite number is missing, with the reason."""
    if isinstance(result, Score):
        return result
    if isinstance(result, str | bytes) or result is None:
        return Score(value=None, missing=f"reward_returned: {result!r:.80}, expected a number")
    try:
        value = float(result)
    except Exception:
        return Score(value=None, missing=f"reward_returned: {type(result).__name__}, expected a number")
    if not np.isfinite(value):
        return Score(value=None, missing=f"reward_returned: {value}, expected a finite number")
    return Score(value=value)


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages as plain data, images as placeholders."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if part.kind == "text" else {"type": part.kind}
                for part in message.parts
            ],
        }
        for message in prompt.messages
    ]


def find(name: str) -> Function:
    """The function of "package.module:function" or "path/to/file.py:function".

    Modules are looked up in the current directory first. Raises RewardNotFound, also for a function that
    takes neither (prompt, response, row) nor nothing: see `builds`.
    """
    module_name, _, function_name = name.rpartition(":")
    module = _module(name, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_")]
        has = f"it has {', '.join(functions)}" if functions else "it has no functions"
        raise RewardNotFound(f"reward {name!r}: {module_name} has no {function_name!r}; {has}")
    if not callable(function):
        raise RewardNotFound(f"reward {name!r}: expected a function, got a {type(function).__name__}")
    if not builds(function):
        _check_signature(name, function)
    return cast("Function", function)


def builds(function: Callable[..., Any]) -> bool:
    """Whether it is no reward function but builds a reward: it can be called without arguments, and cannot be
    called with prompt, response and row."""
    return _binds(function) and not _binds(function, [], "", {})


def build(name: str, function: Callable[..., Any]) -> AnyReward:
    """The reward object that a function without arguments returns. Raises RewardNotFound."""
    try:
        reward = function()
    except Exception as error:
        raise RewardNotFound(
            f"reward {name!r}: building it failed: {type(error).__name__}: {error}"
        ) from error
    if not is_reward(reward):
        raise RewardNotFound(
            f"reward {name!r}: {_name_of(function)}() takes no arguments, so it should build a reward: "
            "an object that is called with (prompt, response) or (prompt, response, media), or has "
            f"group(rollouts, media); got a {type(reward).__name__}"
        )
    return reward


def _module(name: str, place: str) -> ModuleType:
    file = place.endswith(".py")
    if file and not Path(place).is_file():
        raise RewardNotFound(f"reward: {Path(place)}: no such file")
    try:
        return load_module(place, "user")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit of a script that was not meant to be imported
        absent = error.name if isinstance(error, ModuleNotFoundError) and not file else None
        if absent is None or not f"{place}.".startswith(f"{absent}."):  # or only what it imports is absent
            raise RewardNotFound(
                f"reward {name!r}: importing it failed: {type(error).__name__}: {error}"
            ) from error
        raise RewardNotFound(
            f"reward: there is no module {absent!r} in {os.getcwd()} or on the Python path; run the "
            "command from the folder that holds it, or give path/to/file.py:function"
        ) from None


def _binds(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return bool(arguments)
    return True


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    if not _binds(function, [], "", {}):
        raise RewardNotFound(
            f"reward {name!r}: expected a function of (prompt, response, row), got {_name_of(function)}"
            f"{inspect.signature(function)}; one without arguments may build a reward object instead"
        )


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _raised(error: BaseException) -> str:
    return f"reward_raised: {type(error).__name__}: {error}"[:300]
