"""Programs for models that are trained as judges and critics, and pairs from duels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipelines.perturbations.prompts import add_text
from pipelines.perturbations.text import SwapWords
from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Rollout, Score

VERDICT = "first : {first} second : {second} is the first answer good ?"
CRITIQUE = "answer : {answer} list what is not true ."


@dataclass(frozen=True)
class Duels(Step):
    """Random pairs of a set, judged as groups of two: the sets `winners` and `losers`; ties leave both out.

    UnifiedReward's pair factory (code read): a reward that compares answers sees the two alone. The scores of
    a duel are not kept.
    """

    of: str = "y"
    winners: str = "winners"
    losers: str = "losers"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.winners, self.losers})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        order = [int(i) for i in np.random.default_rng(seed).permutation(draft.members(self.of))]
        winners: list[int] = []
        losers: list[int] = []
        for a, b in zip(order[::2], order[1::2], strict=False):
            first, second = await tools.score([draft.rollouts[a], draft.rollouts[b]], draft.media)
            if first.value is None or second.value is None or first.value == second.value:
                continue
            winners.append(a if first.value > second.value else b)
            losers.append(b if first.value > second.value else a)
        if not winners:
            raise Drop("tie")
        return replace(draft, sets={**draft.sets, self.winners: tuple(winners), self.losers: tuple(losers)})


@dataclass(frozen=True)
class AskVerdict(Step):
    """A prompt that asks which of two answers is better, in random order; what is true is `gold["verdict"]`.

    The template has {first} and {second}. The verdict is `right` when the first answer is the better one.
    """

    name: str = "judge"
    better: str = "w"
    worse: str = "l"
    template: str = VERDICT
    right: str = "yes"
    wrong: str = "no"
    under: str = "x"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        texts = [draft.rollout(name).response.text for name in (self.better, self.worse)]
        swapped = bool(np.random.default_rng(seed).random() < 0.5)
        first, second = reversed(texts) if swapped else texts
        prompt = add_text(draft.at(self.under), self.template.format(first=first, second=second), self.name)
        gold = {**prompt.gold, "verdict": self.wrong if swapped else self.right}
        return draft.with_prompt(self.name, replace(prompt, gold=gold))


@dataclass(frozen=True)
class Told(Step):
    """The true verdict of a prompt as an answer: `gold["verdict"]` of `under`."""

    name: str
    under: str = "judge"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompt = draft.at(self.under)
        response = await tools.encode(str(prompt.gold["verdict"]), "gold")
        return draft.with_rollouts(self.name, (Rollout(prompt=prompt, response=response),))


@dataclass(frozen=True)
class Agreement(Step):
    """Keeps groups in which the judges agree, or those in which they do not, on which answer is better.

    A judge is a part of the score, with a minus in front where less is better. They agree when no two order
    the pair differently; one that sees no difference does not vote. Raises ValueError when a score lacks a
    part.
    """

    parts: tuple[str, ...]
    agree: bool
    better: str = "w"
    worse: str = "l"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        sides = [draft.scores[draft.chosen[name]] for name in (self.better, self.worse)]
        gaps = [_part(sides[0], part) - _part(sides[1], part) for part in self.parts]
        if (min(gaps) >= 0 or max(gaps) <= 0) != self.agree:
            raise Drop("judges_disagree" if self.agree else "judges_agree")
        return draft


def _part(score: Score | None, judge: str) -> float:
    name = judge.removeprefix("-")
    if score is None or name not in score.parts:
        known = sorted(score.parts) if score is not None else []
        raise ValueError(f"the method reads the score part {name!r}, but the reward gives only {known}")
    return -score.parts[name] if judge.startswith("-") else score.parts[name]


@dataclass(frozen=True)
class AskCritique(Step):
    """A prompt that shows an answer with 1 to `most` inserted errors and asks for them.

    Critic-V (arXiv 2411.18203; note read) has a language model insert the errors; here `swap` does. The
    prompt's gold column `errors` lists the words that were put in.
    """

    name: str
    of: str
    swap: SwapWords
    most: int = 5
    template: str = CRITIQUE

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        count = 1 + int(np.random.default_rng(seed).integers(self.most))
        swap = replace(self.swap, count=count)
        text, gold = draft.rollout(self.of).response.text, draft.prompt.gold
        errors = [word for found in swap.swaps(text, seed) for word in found.now.split()]
        if not errors:
            raise Drop("nothing_to_corrupt")
        flawed = swap(text, gold, seed)
        prompt = add_text(draft.prompt, self.template.format(answer=flawed), self.name)
        return draft.with_prompt(self.name, replace(prompt, gold={**gold, "errors": errors}))
