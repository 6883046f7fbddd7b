"""Inference-time selection as request options: many answers of one version, of which one goes to the client.

    "plumbline": {"best_of": {"n": 4, "reward": "NAME"}}
    "plumbline": {"consensus": {"n": 5, "similarity": "jaccard"}}
    "plumbline": {"neighbourhood": {"direction": {"helpfulness": 3, "brevity": 1}, "reward": "NAME"}}
    "plumbline": {"contrast": {"alpha": 1.0, "beta": 0.1, "damage": "diffuse"}}

The last one chooses tokens, not answers (`serving.selection.contrast`). Which answer it is, is decided by
`pipelines.selection`. Rewards are those that the server's settings name.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from pipelines.programs.directions import wish
from pipelines.rewards.similarity import bleu, token_jaccard
from pipelines.selection import Neighbourhood as Cone
from pipelines.selection import best_of_n, consensus
from pipelines.types import Score
from serving.gateway import logs
from serving.gateway.errors import ApiError, shown
from serving.gateway.schema import Name, Part, parse
from serving.limits import Limits
from serving.selection import contrast
from serving.selection.contrast import Contrast, Damage
from serving.selection.judging import Judges, prompt_of, rollout_of
from serving.wire import Answer, Refusal

Body = dict[str, Any]
Ask = Callable[[Body], Awaitable[Answer | Refusal]]

SIMILARITIES: dict[str, Callable[[str, str], float]] = {"jaccard": token_jaccard, "bleu": bleu}
Several = Annotated[int, Field(ge=2)]
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


class BestOf(Part):
    """The answer with the highest reward."""

    n: Several
    reward: Name


class Consensus(Part):
    """The answer most like all others."""

    n: Several
    similarity: Literal["jaccard", "bleu"] = "jaccard"


class Neighbourhood(Part):
    """One answer to each of k directions near the wanted one, of which the wanted one chooses.

    `direction`: parts of the reward's score and how much each of them counts.
    """

    direction: dict[Name, float]
    reward: Name
    k: Several = 5
    degrees: Annotated[float, Field(ge=0, le=90)] = 30.0

    @model_validator(mode="after")
    def _points_somewhere(self) -> Neighbourhood:
        if not 2 <= len(self.direction) <= 8:
            raise ValueError(f"direction: expected at least 2 parts and at most 8, got {len(self.direction)}")
        self.cone()
        return self

    def cone(self) -> Cone:
        return Cone(tuple(self.direction.values()), self.k, self.degrees)


class Options(Part):
    best_of: BestOf | None = None
    consensus: Consensus | None = None
    neighbourhood: Neighbourhood | None = None
    contrast: Contrast | None = None

    @model_validator(mode="after")
    def _one(self) -> Options:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"plumbline: expected one selector, got {sorted(self.model_fields_set)}")
        return self


class Wanted(Part):
    """Around the options, so that errors name the whole path."""

    plumbline: Options


WANTED: TypeAdapter[Wanted] = TypeAdapter(Wanted)


class Inference:
    """The selectors of a server (`serving.gateway.protocols.Selectors`)."""

    def __init__(self, judges: Judges, limits: Limits, damage: Damage) -> None:
        self._judges, self._limits, self._damage = judges, limits, damage

    def check(self, options: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Raises ApiError (400) for options that this server cannot, or will not, carry out on this body."""
        wanted = _parsed(options)
        chosen = _chosen(wanted)
        where = f"plumbline.{chosen}"
        if wanted.contrast is not None:
            contrast.check(body)
            return
        selector = getattr(wanted, chosen)
        self._check_count(where, "k" if wanted.neighbourhood else "n", selector)
        if not isinstance(selector, Consensus) and selector.reward not in self._judges.names:
            known = ", ".join(self._judges.names) or "none"
            raise ApiError(
                400,
                f"{where}.reward: there is no reward {shown(selector.reward)}; this server has: {known}",
                param=f"{where}.reward",
            )
        _check_body(where, body)

    def asked(self, options: Mapping[str, Any], body: Body) -> list[Body]:
        """The chats that `run` asks for; a contrast reads its own twice, behind two prompts."""
        wanted = _parsed(options)
        if wanted.contrast is not None:
            return [body, body]
        if wanted.neighbourhood is not None:
            return _told(wanted.neighbourhood, body)
        several = wanted.best_of or wanted.consensus
        assert several is not None  # there is one selector
        return [{**body, "n": several.n}]

    async def run(self, options: Mapping[str, Any], body: Body, ask: Ask) -> Answer | Refusal:
        """One answer; its `plumbline` says what was chosen from what. Every token is in its usage."""
        wanted = _parsed(options)
        if wanted.best_of is not None:
            return await self._best_of(wanted.best_of, body, ask)
        if wanted.neighbourhood is not None:
            return await self._neighbourhood(wanted.neighbourhood, body, ask)
        if wanted.contrast is not None:
            return await self._contrast(wanted.contrast, body, ask)
        assert wanted.consensus is not None  # `check` refused everything else
        return await _consensus(wanted.consensus, body, ask)

    async def _best_of(self, wanted: BestOf, body: Body, ask: Ask) -> Answer | Refusal:
        answer = await ask({**body, "n": wanted.n, "return_token_ids": True})
        if isinstance(answer, Refusal):
            return answer
        scores = await self._scores(wanted.reward, body, answer.body["choices"])
        if isinstance(scores, Refusal):
            return scores
        index = best_of_n(scores)
        if index is None:
            return _unscored(wanted.reward, scores)
        said = {"selector": "best_of", "reward": wanted.reward, "scores": [s.value for s in scores]}
        return _selected([answer], index, said)

    async def _neighbourhood(self, wanted: Neighbourhood, body: Body, ask: Ask) -> Answer | Refusal:
        names = list(wanted.direction)
        answers: list[Answer] = []
        for given in await asyncio.gather(*(ask(one) for one in _told(wanted, body))):
            if isinstance(given, Refusal):
                return given
            answers.append(given)
        # All are judged as answers to what was asked, without the wish that each was told.
        scores = await self._scores(wanted.reward, body, _choices(answers))
        if isinstance(scores, Refusal):
            return scores
        rated = [
            (i, [score.parts[name] for name in names])
            for i, score in enumerate(scores)
            if score.value is not None and all(name in score.parts for name in names)
        ]
        if not rated:
            return _unscored(wanted.reward, scores, f" with the parts {', '.join(names)}")
        index = rated[wanted.cone().select([parts for _, parts in rated])][0]
        found = dict(rated)
        parts = [dict(zip(names, found[i], strict=True)) if i in found else None for i in range(len(scores))]
        said = {"selector": "neighbourhood", "reward": wanted.reward, "scores": parts}
        return _selected(answers, index, said)

    async def _contrast(self, wanted: Contrast, body: Body, ask: Ask) -> Answer | Refusal:
        answer = await ask(await contrast.asked(wanted, body, self._damage))
        if isinstance(answer, Refusal):
            return answer
        said = {"selector": "contrast", **wanted.model_dump(exclude_none=True)}
        return Answer(version=answer.version, replica=answer.replica, body={**answer.body, "plumbline": said})

    async def _scores(self, reward: str, body: Body, choices: Sequence[Body]) -> tuple[Score, ...] | Refusal:
        prompt, media = await asyncio.to_thread(prompt_of, body)
        rollouts = [rollout_of(prompt, choice) for choice in choices]
        known = [rollout for rollout in rollouts if rollout is not None]
        if len(known) < len(rollouts):
            return Refusal(
                status=500, code="no_tokens", message="the replica did not say what tokens it drew"
            )
        return await self._judges.scores(reward, known, media)

    def _check_count(self, where: str, field: str, selector: Any) -> None:
        count, most = getattr(selector, field), self._limits.n
        if count > most:
            raise ApiError(
                400, f"{where}.{field}: at most {most} answers, got {count}", param=f"{where}.{field}"
            )


def _told(wanted: Neighbourhood, body: Body) -> list[Body]:
    """The chat with one wish after the other."""
    seed = body.get("seed", random.getrandbits(31))
    directions = wanted.cone().directions(abs(seed)).tolist()
    return [
        {**with_text(body, wish(list(wanted.direction), one)), "seed": seed + i, "return_token_ids": True}
        for i, one in enumerate(directions)
    ]


async def _consensus(wanted: Consensus, body: Body, ask: Ask) -> Answer | Refusal:
    answer = await ask({**body, "n": wanted.n})
    if isinstance(answer, Refusal):
        return answer
    texts = [choice["message"].get("content") or "" for choice in answer.body["choices"]]
    like = SIMILARITIES[wanted.similarity]
    # Every pair is compared, which is slow for long answers.
    index = await asyncio.to_thread(consensus, texts, like)
    return _selected([answer], index, {"selector": "consensus", "similarity": wanted.similarity})


def _parsed(options: Mapping[str, Any]) -> Options:
    return parse(WANTED, {"plumbline": dict(options)}).plumbline


def _chosen(wanted: Options) -> str:
    [name] = wanted.model_fields_set
    if getattr(wanted, name) is None:
        raise ApiError(400, f"plumbline.{name}: expected an object, got null", param=f"plumbline.{name}")
    return name


def _check_body(where: str, body: Mapping[str, Any]) -> None:
    if body.get("n", 1) != 1:
        raise ApiError(400, f"n: {where} says how many answers there are; remove n", param="n")
    if body.get("temperature") == 0:
        raise ApiError(
            400,
            f"temperature: at 0 all answers are the same and {where} has no choice; raise it",
            param="temperature",
        )
    if body.get("tools") and body.get("tool_choice") != "none":
        raise ApiError(
            400, f"tools: {where} chooses among texts, not tool calls; remove tools", param="tools"
        )


def with_text(body: Body, text: str) -> Body:
    """The chat with a text at the end of its last user message."""
    messages = list(body["messages"])
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise ApiError(400, "messages: expected a user's message, got none", param="messages")
    content = messages[last]["content"]
    if isinstance(content, str):
        content = f"{content} {text}".lstrip()
    else:
        content = [*content, {"type": "text", "text": text}]
    messages[last] = {**messages[last], "content": content}
    return {**body, "messages": messages}


def _choices(answers: Sequence[Answer]) -> list[Body]:
    return [choice for answer in answers for choice in answer.body["choices"]]


def _selected(answers: Sequence[Answer], index: int, said: Mapping[str, Any]) -> Answer:
    """One OpenAI object with the chosen answer, what all of them cost, and how it was chosen."""
    choices = _choices(answers)
    chosen = {key: value for key, value in choices[index].items() if key != "token_ids"} | {"index": 0}
    used = [answer.body.get("usage") or {} for answer in answers]
    body = {key: value for key, value in answers[0].body.items() if key != "prompt_token_ids"} | {
        "choices": [chosen],
        "usage": {key: sum(usage.get(key) or 0 for usage in used) for key in USAGE},
        "plumbline": {**said, "chosen": index, "of": len(choices)},
    }
    return Answer(version=answers[0].version, replica=answers[0].replica, body=body)


def _unscored(reward: str, scores: Sequence[Score], what: str = "") -> Refusal:
    """No answer has a score. Clients see only the kind of the reason, which is ours; the log has no more."""
    kinds = sorted({score.missing.partition(":")[0] for score in scores if score.missing})
    known = [kind for kind in kinds if re.fullmatch(r"[a-z_]{1,40}", kind)]
    logs.event("a reward gave no score", reward=reward, reasons=kinds)
    why = f" ({', '.join(known)})" if known else ""
    message = f"the reward {reward} gave no answer a score{what}{why}; try again or ask without it"
    return Refusal(status=503, code="reward_failed", message=message)
