"""Instructions whose fulfilment a rule can check: MAPL's constraint functions.

MAPL (third-party note) draws instructions that a given answer is known to satisfy or to violate, and so gets
preferences between *prompts* without annotators. Which constraints there are is inferred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.perturbations.keywords import words_of
from pipelines.perturbations.text import content_words, sentences


@dataclass(frozen=True)
class Constraint:
    """An instruction with its checker."""

    template: ClassVar[str]  # what the instruction says, with {value}

    def __call__(self, text: str) -> bool:
        """Whether a text satisfies it."""
        raise TypeError(f"{type(self).__name__} does not define what satisfies it")

    def instruction(self, templates: Mapping[str, str] | None = None) -> str:
        """What to tell the model; `templates`: class name -> other wording, e.g. for a small vocabulary."""
        template = (templates or {}).get(type(self).__name__, self.template)
        return template.format(value=getattr(self, "value", ""))

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        """Those that make sense for a text, satisfied or not; `vocabulary`: words that may be asked for."""
        raise TypeError(f"{cls.__name__} does not define which ones there are")


@dataclass(frozen=True)
class AtMostWords(Constraint):
    value: int
    template = "Answer in at most {value} words."

    def __call__(self, text: str) -> bool:
        return len(text.split()) <= self.value

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls(value) for value in _around(len(text.split()))]


@dataclass(frozen=True)
class AtLeastWords(Constraint):
    value: int
    template = "Answer in at least {value} words."

    def __call__(self, text: str) -> bool:
        return len(text.split()) >= self.value

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls(value) for value in _around(len(text.split()))]


def _around(length: int) -> range:
    """From half of a length to about its double, and at least 1."""
    return range(max(length // 2, 1), 2 * length + 2)


@dataclass(frozen=True)
class Mentions(Constraint):
    value: str
    template = 'Use the word "{value}".'

    def __call__(self, text: str) -> bool:
        return self.value.lower() in words_of(text)

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls(word) for word in _single([*content_words(text), *vocabulary])]


@dataclass(frozen=True)
class Avoids(Constraint):
    value: str
    template = 'Do not use the word "{value}".'

    def __call__(self, text: str) -> bool:
        return self.value.lower() not in words_of(text)

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls(word) for word in _single([*content_words(text), *vocabulary])]


def _single(words: Sequence[str]) -> list[str]:
    """Without repetitions, and without what is no single word."""
    return [word for word in dict.fromkeys(words) if list(words_of(word)) == [word.lower()]]


@dataclass(frozen=True)
class Lowercase(Constraint):
    template = "Write in lower case only."

    def __call__(self, text: str) -> bool:
        return text == text.lower()

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls()]


@dataclass(frozen=True)
class StartsWith(Constraint):
    value: str
    template = 'Start with "{value}".'

    def __call__(self, text: str) -> bool:
        wanted = words_of(self.value)
        return words_of(text)[: len(wanted)] == wanted

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        said = words_of(text)
        starts = [" ".join(said[:count]) for count in range(1, min(3, len(said)) + 1)]
        return [cls(phrase) for phrase in (*starts, *_single(vocabulary))]


@dataclass(frozen=True)
class EndsWith(Constraint):
    value: str
    template = 'End with "{value}".'

    def __call__(self, text: str) -> bool:
        wanted = words_of(self.value)
        return words_of(text)[-len(wanted) :] == wanted

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        said = words_of(text)
        ends = [" ".join(said[-count:]) for count in range(1, min(3, len(said)) + 1)]
        return [cls(phrase) for phrase in (*ends, *_single(vocabulary))]


@dataclass(frozen=True)
class Sentences(Constraint):
    value: int
    template = "Answer in exactly {value} sentences."

    def __call__(self, text: str) -> bool:
        return len(sentences(text)) == self.value

    @classmethod
    def about(cls, text: str, vocabulary: Sequence[str]) -> Sequence[Constraint]:
        return [cls(value) for value in range(1, len(sentences(text)) + 4)]


Family = type[Constraint]
FAMILIES: tuple[Family, ...] = (
    AtMostWords,
    AtLeastWords,
    Mentions,
    Avoids,
    Lowercase,
    StartsWith,
    EndsWith,
    Sentences,
)


def draw(
    text: str,
    satisfied: bool,
    seed: int,
    families: Sequence[Family] = FAMILIES,
    vocabulary: Sequence[str] = (),
) -> Constraint | None:
    """A random constraint, of a random family, that the text satisfies or violates; None when there is none.

    `vocabulary`: words for constraints that name what the text does not say.
    """
    rng = np.random.default_rng(seed)
    for place in rng.permutation(len(families)):
        fitting = [c for c in families[int(place)].about(text, vocabulary) if c(text) == satisfied]
        if fitting:
            return fitting[int(rng.integers(len(fitting)))]
    return None
