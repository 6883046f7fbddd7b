"""Contrastive decoding as a request option: what the client may ask, and the second prompt that it needs.

    "plumbline": {"contrast": {"alpha": 1.0, "beta": 0.1, "damage": "diffuse", "amount": 500}}

VCD (arXiv 2311.16922, from memory) contrasts the picture with a noised one; `removed` contrasts it with no
picture at all, as VDD (code read). The tokens are chosen in `serving.replicas.contrast`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serving.decoding.damages import perturbation
from serving.gateway.errors import ApiError
from serving.gateway.schema import Part

Body = dict[str, Any]
#: Clean pictures (data URLs), a perturbation's name and amount, a seed -> the damaged ones.
Damage = Callable[[Sequence[str], str, float | None, int], Awaitable[list[str]]]

WHERE = "plumbline.contrast"
#: Fields that change what the engine samples from, or what it says about that: tokens are chosen outside it.
UNSUITED = (
    *("n", "stop", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "response_format"),
)


class Contrast(Part):
    """(1 + alpha) l(picture) - alpha l(damaged picture), among tokens with p(picture) >= beta max p."""

    alpha: Annotated[float, Field(ge=0, le=10)] = 1.0
    beta: Annotated[float, Field(ge=0.01, le=1)] = 0.1
    damage: Literal["diffuse", "gaussian", "pixel_mask", "removed"] = "diffuse"
    amount: float | None = None  # steps, standard deviation, share of pixels; null: the perturbation's own

    @model_validator(mode="after")
    def _damages(self) -> Contrast:
        if self.damage != "removed":
            perturbation(self.damage, self.amount)
        elif self.amount is not None:
            raise ValueError("amount: a picture that is removed has none; remove amount")
        return self


def check(body: Mapping[str, Any]) -> None:
    """Raises ApiError (400) for a chat that cannot be answered so."""
    for name in UNSUITED:
        if name in body and (name, body[name]) not in (("n", 1), ("logprobs", False)):
            raise ApiError(400, f"{name}: {WHERE} chooses each token itself; remove {name}", param=name)
    kinds = {part["type"] for part in _media(body)}
    if kinds - {"image_url"}:
        raise ApiError(400, f"messages: {WHERE} damages pictures only; remove other media", param="messages")
    if not kinds:
        problem = f"messages: {WHERE} needs a picture to damage; add one, or remove the option"
        raise ApiError(400, problem, param="messages")


async def asked(wanted: Contrast, body: Body, damage: Damage) -> Body:
    """What the replica is asked: the chat, and under `contrast` the one whose log-probabilities count against
    it. Pictures are damaged by the request's seed, and by 0 without one."""
    messages = _without_pictures(body)
    if wanted.damage != "removed":
        urls = [part["image_url"]["url"] for part in _media(body)]
        seed = abs(body.get("seed", 0))
        messages = _with_pictures(body, await damage(urls, wanted.damage, wanted.amount, seed))
    return {**body, "contrast": {"alpha": wanted.alpha, "beta": wanted.beta, "messages": messages}}


def _media(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for message in body["messages"]:
        content = message.get("content")
        yield from (part for part in (content if isinstance(content, list) else ()) if part["type"] != "text")


def _with_pictures(body: Body, urls: Sequence[str]) -> list[Body]:
    left = iter(urls)
    return _rewritten(body, lambda part: {**part, "image_url": {**part["image_url"], "url": next(left)}})


def _without_pictures(body: Body) -> list[Body]:
    return _rewritten(body, lambda part: None)


def _rewritten(body: Body, picture: Callable[[Body], Body | None]) -> list[Body]:
    """The messages with each part that is a picture as `picture` makes it; None leaves it out."""

    def message(given: Body) -> Body:
        if not isinstance(given.get("content"), list):
            return given
        parts = [part if part["type"] == "text" else picture(part) for part in given["content"]]
        return {**given, "content": [part for part in parts if part is not None] or ""}

    return [message(given) for given in body["messages"]]
