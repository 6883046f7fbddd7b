"""Judges that answer in words: ratings, and duels in both orders; what cannot be parsed is missing.

The model behind them is a port, `Completer`; `actors.judge` has one on vLLM.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.rewards.base import AnyReward, judge_group, missing
from pipelines.types import MediaTable, Message, Part, Prompt, Response, Rollout, Score, canonical_digest

Verdict = Literal["first", "second", "tie"]
Reading = float | Mapping[str, float]
_SIDES: Mapping[str, Verdict] = {"a": "first", "b": "second", "tie": "tie", "c": "tie"}


class Completer(Protocol):
    """A fixed model that answers a prompt; every wait inside has a deadline."""

    async def complete(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[str]:
        """n sampled answers."""
        ...


# -- templates and parsers -----------------------------------------------------------------------------------


def asking(prompt: Prompt, text: str) -> Prompt:
    """One user message: what the user said and showed in `prompt`, then `text`."""
    shown = tuple(part for message in prompt.messages if message.role == "user" for part in message.parts)
    parts = (*shown, Part(kind="text", text=text))
    return Prompt(id=prompt.id, messages=(Message(role="user", parts=parts),), origin="judge")


def ask_rating(prompt: Prompt, response: Response) -> tuple[Prompt, ...]:
    text = (
        f"\n\nRate this answer to the request above from 1 (useless) to 10 (perfect):\n{response.text}\n\n"
        "End with the rating in double brackets, such as [[5]]. If you cannot tell, end with [[?]]."
    )
    return (asking(prompt, text),)


def ask_which(prompt: Prompt, first: str, second: str) -> Prompt:
    text = (
        f"\n\nTwo answers to the request above.\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        "Which one is better? End with [[A]], [[B]] or [[tie]]; if you cannot tell, end with [[?]]."
    )
    return asking(prompt, text)


def read_choice(text: str) -> Verdict | None:
    """The last [[A]], [[B]], [[C]] or [[tie]]; None when there is none: no parse, or an abstention."""
    found = re.findall(r"\[\[\s*(\w+|\?)\s*\]\]", text)
    return _SIDES.get(found[-1].lower()) if found else None


@dataclass(frozen=True)
class ReadRating:
    """The last [[number]] of a text; None outside [low, high]."""

    low: float = 1.0
    high: float = 10.0

    def __call__(self, text: str) -> float | None:
        found = re.findall(r"\[\[\s*(-?\d+(?:\.\d+)?|\?)\s*\]\]", text)
        if not found or found[-1] == "?":
            return None
        return value if self.low <= (value := float(found[-1])) <= self.high else None


@dataclass(frozen=True)
class ReadAspects:
    """One `name: number` per aspect; None unless all are there and within [low, high]."""

    names: tuple[str, ...]
    low: float = 1.0
    high: float = 10.0

    def __call__(self, text: str) -> Mapping[str, float] | None:
        values: dict[str, float] = {}
        for name in self.names:
            found = re.search(rf"\b{re.escape(name)}\b\W*?(-?\d+(?:\.\d+)?)", text, re.IGNORECASE)
            if found is None or not self.low <= float(found.group(1)) <= self.high:
                return None
            values[name] = float(found.group(1))
        return values


# -- judges --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rating:
    """The mean rating over the questions that `ask` poses about an answer, `votes` samples of each.

    A reading of several aspects (`ReadAspects`) makes them parts, and the value their sum. Confidence is the
    share of samples that could be read; without any the score is missing.
    """

    judge: Completer
    ask: Callable[[Prompt, Response], Sequence[Prompt]] = ask_rating
    read: Callable[[str], Reading | None] = ReadRating()
    votes: int = 1
    seed: int = 0

    async def __call__(self, prompt: Prompt, response: Response, media: MediaTable) -> Score:
        questions = self.ask(prompt, response)
        if not questions:
            return missing("judge_was_not_asked")
        seeds = [_seed(self.seed, q.digest, i) for i, q in enumerate(questions)]
        work = (self.judge.complete(q, media, self.votes, s) for q, s in zip(questions, seeds, strict=True))
        texts = [text for answers in await asyncio.gather(*work) for text in answers]
        readings = [reading for text in texts if (reading := self.read(text)) is not None]
        if not readings:
            return missing(f"judge_not_parsed: {texts[0]!r:.80}" if texts else "judge_gave_nothing")
        columns: dict[str, list[float]] = defaultdict(list)
        for reading in readings:
            for name, value in reading.items() if isinstance(reading, Mapping) else [("", reading)]:
                columns[name].append(value)
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        parts = {name: value for name, value in means.items() if name}
        return Score(value=sum(means.values()), parts=parts, confidence=len(readings) / len(texts))


@dataclass(frozen=True)
class Duel:
    """Which of two answers is better, asked in both orders: 1, 0, between them, or None.

    The result is the mean over the two orders, so a judge that only likes a position gives 1/2, a tie; with
    `inconsistent="abstain"` contradicting orders give None. One unreadable order gives None as well.
    """

    judge: Completer
    ask: Callable[[Prompt, str, str], Prompt] = ask_which
    read: Callable[[str], Verdict | None] = read_choice
    inconsistent: Literal["tie", "abstain"] = "tie"
    seed: int = 0

    async def __call__(self, prompt: Prompt, a: str, b: str, media: MediaTable) -> float | None:
        ahead, behind = await asyncio.gather(self._ask(prompt, a, b, media), self._ask(prompt, b, a, media))
        if ahead is None or behind is None:
            return None
        wins = (_points(ahead), 1 - _points(behind))
        if self.inconsistent == "abstain" and abs(wins[0] - wins[1]) == 1:
            return None
        return sum(wins) / 2

    async def _ask(self, prompt: Prompt, first: str, second: str, media: MediaTable) -> Verdict | None:
        question = self.ask(prompt, first, second)
        texts = await self.judge.complete(question, media, 1, _seed(self.seed, question.digest))
        return self.read(texts[0]) if texts else None


def _points(verdict: Verdict) -> float:
    return {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict]


@dataclass(frozen=True)
class Tournament:
    """The share of duels that each answer wins, over all pairs or `most` of them drawn at random.

    Abstentions do not count; an answer without a counted duel is missing. Confidence: the counted share.
    Equal texts tie without being asked about.
    """

    duel: Duel
    most: int | None = None
    seed: int = 0

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        pairs = [(i, j) for i in range(len(rollouts)) for j in range(i + 1, len(rollouts))]
        if self.most is not None and self.most < len(pairs):
            pairs = random.Random(_seed_of_group(self.seed, rollouts)).sample(pairs, self.most)
        results = await asyncio.gather(*(fight(self.duel, rollouts, i, j, media) for i, j in pairs))
        won: list[list[float]] = [[] for _ in rollouts]
        asked = [0] * len(rollouts)
        for (i, j), result in zip(pairs, results, strict=True):
            asked[i] += 1
            asked[j] += 1
            if result is not None:
                won[i].append(result)
                won[j].append(1 - result)
        return [
            Score(value=sum(w) / len(w), confidence=len(w) / n) if w else missing("no_duel_decided")
            for w, n in zip(won, asked, strict=True)
        ]


@dataclass(frozen=True)
class DuelFactory:
    """Only the best winner of random duels and the worst loser get a score; all others are missing.

    UnifiedReward's pair factory (arXiv 2503.05236; released code read): 10 samples meet in 5 random duels,
    winners and losers are then rated one by one, and the best winner is paired with the worst loser, skipped
    unless strictly higher. Choosing best against worst afterwards takes exactly that pair.
    """

    duel: Duel
    rating: AnyReward
    seed: int = 0

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> list[Score]:
        order = list(range(len(rollouts)))
        random.Random(_seed_of_group(self.seed, rollouts)).shuffle(order)
        duels = list(zip(order[::2], order[1::2], strict=False))
        results = await asyncio.gather(*(fight(self.duel, rollouts, i, j, media) for i, j in duels))
        winners: list[int] = []
        losers: list[int] = []
        for (i, j), result in zip(duels, results, strict=True):
            if result is not None and result != 0.5:
                winners.append(i if result > 0.5 else j)
                losers.append(j if result > 0.5 else i)
        rated = await judge_group(self.rating, [rollouts[i] for i in winners + losers], media)
        values = {i: s.value for i, s in zip(winners + losers, rated, strict=True) if s.value is not None}
        scores = [missing("not_chosen_by_duels")] * len(rollouts)
        up = [i for i in winners if i in values]
        down = [i for i in losers if i in values]
        if up and down:
            best, worst = max(up, key=lambda i: values[i]), min(down, key=lambda i: values[i])
            if values[best] > values[worst]:
                scores[best], scores[worst] = Score(value=values[best]), Score(value=values[worst])
        return scores


async def fight(duel: Duel, rollouts: Sequence[Rollout], i: int, j: int, media: MediaTable) -> float | None:
    """One duel of a group; a judge that fails abstains."""
    a, b = rollouts[i].response.text, rollouts[j].response.text
    if a == b:
        return 0.5
    try:
        return await duel(rollouts[i].prompt, a, b, media)
    except Exception:
        return None


def _seed(*items: object) -> int:
    return int(canonical_digest(list(items))[:7], 16)


def _seed_of_group(seed: int, rollouts: Sequence[Rollout]) -> int:
    return _seed(seed, [[r.prompt.digest, list(r.response.tokens)] for r in rollouts])
