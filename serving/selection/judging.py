"""What a reward of the method library needs to judge answers to a request: prompt, media, a thread."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.data import images
from pipelines.rewards.base import AnyReward, judge_group
from pipelines.rewards.user import RewardNotFound, User, build, builds, find
from pipelines.settings_errors import SettingsError
from pipelines.types import Media, MediaTable, Message, Part, Prompt, Response, Rollout, Score
from serving.gateway.errors import ApiError, path

Body = Mapping[str, Any]
LONGEST_S = 3600.0  # `Judges` stops waiting long before


def load_rewards(named: Mapping[str, str]) -> dict[str, AnyReward]:
    """Rewards under the names that requests may use; each setting is as a run's own `reward`.

    "package.module:function" or "path/to/file.py:function": a reward of (prompt, response, row), where the
    row holds nothing but an id, or a function without arguments that returns a reward. Raises SettingsError.
    """
    return {name: _loaded(name, where) for name, where in named.items()}


def _loaded(name: str, where: str) -> AnyReward:
    try:
        function = find(where)
        return build(where, function) if builds(function) else User(function, LONGEST_S)
    except RewardNotFound as error:
        raise SettingsError(f"selectors.rewards.{name}: {error}") from error


class Judges:
    """Rewards on an event loop and a thread of their own: one that blocks does not hold up the gateway."""

    def __init__(self, rewards: Mapping[str, AnyReward], timeout_s: float) -> None:
        self._rewards = dict(rewards)
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="judges", daemon=True).start()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._rewards))

    async def scores(self, name: str, rollouts: Sequence[Rollout], media: MediaTable) -> tuple[Score, ...]:
        """One score per rollout, in order; what fails or takes too long is missing, with the reason."""
        judged = judge_group(self._rewards[name], rollouts, media)
        running = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(judged, self._loop))
        try:
            return await asyncio.wait_for(running, self._timeout_s)
        except TimeoutError:
            late = Score(value=None, missing=f"reward_timed_out: no answer after {self._timeout_s:g} s")
            return (late,) * len(rollouts)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def prompt_of(body: Body) -> tuple[Prompt, dict[str, Media]]:
    """A chat as the library knows prompts, and its pictures, decoded from the bytes that the engine gets.

    Raises ApiError for media of other kinds: no reward of the library reads them from here.
    """
    media: dict[str, Media] = {}
    messages: list[Message] = []
    for index, message in enumerate(body["messages"]):
        content = message.get("content")
        given = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        parts = tuple(
            _part(part, media, path("messages", index, "content", number))
            for number, part in enumerate(given)
        )
        role = "system" if message["role"] == "developer" else message["role"]
        messages.append(Message(role=role, parts=parts))
    return Prompt(id="request", messages=tuple(messages), origin="request"), media


def _part(part: Body, media: dict[str, Media], where: str) -> Part:
    if part["type"] == "text":
        return Part(kind="text", text=part["text"])
    if part["type"] != "image_url":
        raise ApiError(400, f"{where}: rewards look at pictures only; ask without a reward", param=where)
    _, _, data = part["image_url"]["url"].partition(";base64,")
    try:
        picture = images.load(base64.b64decode(data, validate=True))
    except (ValueError, images.BadImage):
        raise ApiError(400, f"{where}: expected a picture as a data URL", param=where) from None
    media[picture.digest] = picture
    return Part(kind="image", digest=picture.digest)


def rollout_of(prompt: Prompt, choice: Body) -> Rollout | None:
    """An answer as a reward judges it; None when the replica did not say which tokens it is made of."""
    tokens = choice.get("token_ids")
    if tokens is None:
        return None
    text = choice["message"].get("content") or ""
    response = Response(tokens=tuple(tokens), text=text, finished=choice.get("finish_reason") != "length")
    return Rollout(prompt=prompt, response=response)
