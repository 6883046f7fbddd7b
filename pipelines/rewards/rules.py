"""Rewards that need no model: exact answers, form, length, lists of errors, and what is built from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pipelines.rewards.aggregate import WeightedSum
from pipelines.rewards.base import AnyReward, missing
from pipelines.rewards.similarity import words
from pipelines.types import Prompt, Response, Score


def normalised(text: str) -> str:
    """Lower-cased words without punctuation, for comparing answers."""
    return " ".join(words(text))


@dataclass(frozen=True)
class ExactMatch:
    """1 when the answer equals the gold column `key` (or one of a list) up to case and punctuation, else 0.

    `answer` finds the answer in a response; None there means that none was given, which is wrong, not
    missing. A prompt without the column is missing: it cannot be verified.
    """

    key: str = "answer"
    answer: Callable[[str], str | None] = str

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        if self.key not in prompt.gold:
            return missing(f"no_gold_column: {self.key}")
        gold = prompt.gold[self.key]
        options = cast("list[Any]", gold) if isinstance(gold, list | tuple) else [gold]
        given = self.answer(response.text)
        right = given is not None and normalised(given) in {normalised(str(option)) for option in options}
        return Score(value=float(right), parts={"correct": float(right)})


@dataclass(frozen=True)
class Between:
    """Takes the text between two markers, such as <answer> and </answer>: for `ExactMatch.answer`."""

    start: str
    end: str

    def __call__(self, text: str) -> str | None:
        found = re.search(f"{re.escape(self.start)}(.*?){re.escape(self.end)}", text, re.DOTALL)
        return found.group(1).strip() if found else None


@dataclass(frozen=True)
class Format:
    """1 when the whole response matches a regular expression, else 0."""

    pattern: str

    def __post_init__(self) -> None:
        re.compile(self.pattern)

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        return Score(value=float(re.fullmatch(self.pattern, response.text.strip(), re.DOTALL) is not None))


@dataclass(frozen=True)
class Length:
    """Tokens of the response."""

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        return Score(value=float(len(response.tokens)))


@dataclass(frozen=True)
class CorrectnessBonus:
    """LLaVA-RLHF's bonus (arXiv 2309.14525; released code read): multiple choice 1 or 0; questions whose true
    answer is "no" +0.5 or -0.5; everything else 0.

    The gold columns are `answer` and, for multiple choice, `options`. A response answers with its first word.
    """

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        gold = normalised(str(prompt.gold.get("answer", "")))
        given = words(response.text)[:1]
        if prompt.gold.get("options"):
            return Score(value=float(given == gold.split()[:1]))
        if gold == "no":
            return Score(value=0.5 if given == ["no"] else -0.5)
        return Score(value=0.0)


def factually_augmented(model: AnyReward) -> WeightedSum:
    """r = RM + 2 bonus - 10 length / 896 - 8 [unfinished], length in tokens.

    LLaVA-RLHF, Factually Augmented RLHF (arXiv 2309.14525; released code read). The facts themselves, gold
    captions or options, enter the prompt that `model` sees: wrap it in `prompts.Augmented`.
    """
    return WeightedSum(
        {"model": model, "bonus": CorrectnessBonus(), "length": Length()},
        {"model": 1.0, "bonus": 2.0, "length": -10 / 896},
        unfinished=8.0,
    )


def listed(text: str) -> frozenset[str]:
    """The items of a list written one per line, without numbers and bullets, normalised."""
    lines = (normalised(re.sub(r"^\s*(?:\d+[.)]|[-*])\s*", "", line)) for line in text.splitlines())
    return frozenset(line for line in lines if line)


@dataclass(frozen=True)
class Jaccard:
    """|found and inserted| / |found or inserted| between the errors a critique names and those put in.

    Critic-V (arXiv 2411.18203; note read) scores a critique by this plus alpha times a judge's rating:
    `WeightedSum({"jaccard": Jaccard(), "judge": ...}, {"judge": alpha})`. The gold column `key` lists the
    inserted errors; `read` finds those that a critique names.
    """

    key: str = "errors"
    read: Callable[[str], frozenset[str]] = listed

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        if self.key not in prompt.gold:
            return missing(f"no_gold_column: {self.key}")
        inserted = frozenset(normalised(str(error)) for error in prompt.gold[self.key])
        found = self.read(response.text)
        union = inserted | found
        return Score(value=len(inserted & found) / len(union) if union else 1.0)


@dataclass(frozen=True)
class Parts:
    """A vector reward from numbers that somebody else gave: `rate(prompt, response)` -> part -> number.

    The value is their sum. Five aspects rated by a judge are how "Multi-modal preference alignment remedies
    regression of visual instruction tuning" (arXiv 2402.10884; code and abstract read) finds best and worst.
    """

    rate: Callable[[Prompt, Response], Mapping[str, float]]

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        parts = dict(self.rate(prompt, response))
        return Score(value=sum(parts.values()), parts=parts) if parts else missing("no_ratings")


def score_gaps(winner: Score, loser: Score, weights: Mapping[str, float]) -> float:
    """sum_k w_k (r_k(winner) - r_k(loser)) over parts: the margin w_{2:}^T delta r_{2:} of MODPO.

    MODPO (arXiv 2310.03708; released code read): -log sigmoid((beta delta rho - this) / w_1), with the
    weights of all objectives summing to 1. A constant added to a part of both sides changes nothing.
    Raises KeyError for a part that a score lacks.
    """
    return sum(w * (winner.parts[name] - loser.parts[name]) for name, w in weights.items())
