"""Edits of answers: words deleted or swapped, and sentences cut for somebody to continue."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipelines.perturbations.keywords import STOP_WORDS, WORD, words_of

Lexicon = Mapping[str, Sequence[str]]  # kind -> phrases that may stand for each other


class Edit(Protocol):
    """Changes an answer. Pure: the same seed gives the same text. `gold`: free columns of the row."""

    def __call__(self, text: str, gold: Mapping[str, Any], seed: int) -> str: ...


def content_words(text: str) -> Sequence[str]:
    """The words of a text that are no stop words, lower-cased."""
    return [word for word in words_of(text) if word.replace("\u2019", "'") not in STOP_WORDS]


@dataclass(frozen=True)
class DeleteWords:
    """Deletes a `share` of the places where a key word stands, each with the space before it.

    SPO (self-supervised degrees; abstract read, mechanism from memory) deletes growing shares of key content.
    What a smaller share deletes is also deleted by a larger one of the same seed. `content` finds the key
    words of a text, lower-cased: all content words, or the few best with `keywords.GraphRank`.

    Raises ValueError for a share outside 0..1.
    """

    share: float
    content: Callable[[str], Collection[str]] = field(default=content_words, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"DeleteWords(share=...): expected 0 to 1, got {self.share}")

    def __call__(self, text: str, gold: Mapping[str, Any], seed: int) -> str:
        keys = frozenset(self.content(text))
        places = [match.span() for match in WORD.finditer(text) if match.group().lower() in keys]
        order = np.random.default_rng(seed).permutation(len(places))
        for i in sorted((int(i) for i in order[: round(self.share * len(places))]), reverse=True):
            start, end = places[i]
            text = text[:start].rstrip() + text[end:]
        return text.lstrip()

    @property
    def strength(self) -> float:
        """The share."""
        return self.share


def degrees(
    classes: int, content: Callable[[str], Collection[str]] = content_words
) -> tuple[DeleteWords, ...]:
    """One deletion per degree class of SPO: class k of K deletes the share k / K, so class 0 is the answer
    itself (inferred). A degree head predicts k. Raises ValueError for fewer than 2 classes.
    """
    if classes < 2:
        raise ValueError(f"degrees(classes=...): expected at least 2, got {classes}")
    return tuple(DeleteWords(k / classes, content) for k in range(classes))


class WordSwap(NamedTuple):
    """A phrase in place of another of its kind."""

    kind: str
    start: int  # character of the original text
    was: str
    now: str


@dataclass(frozen=True)
class SwapWords:
    """Puts another phrase of the same kind in the place of `count` phrases of a lexicon.

    Errors of the kinds that POVID (code read) has a language model inject: objects, attributes, relations.
    Here they are drawn from lists. Case does not matter in finding a phrase, a capital first letter is kept,
    and the longest phrase wins. A text with fewer phrases has all of them swapped.

    Raises ValueError for a kind with fewer than two phrases or a count below 1.
    """

    lexicon: Lexicon = field(hash=False)
    count: int = 1

    def __post_init__(self) -> None:
        for kind, phrases in self.lexicon.items():
            if len({phrase.lower() for phrase in phrases}) < 2:
                raise ValueError(f"SwapWords: the kind {kind!r} needs two phrases or more, got {phrases!r}")
        if self.count < 1:
            raise ValueError(f"SwapWords(count=...): expected at least 1, got {self.count}")

    def __call__(self, text: str, gold: Mapping[str, Any], seed: int) -> str:
        for swap in reversed(self.swaps(text, seed)):
            text = text[: swap.start] + swap.now + text[swap.start + len(swap.was) :]
        return text

    def swaps(self, text: str, seed: int) -> tuple[WordSwap, ...]:
        """What is swapped, in the order of the text."""
        kinds = {phrase.lower(): kind for kind, phrases in self.lexicon.items() for phrase in phrases}
        longest_first = sorted(kinds, key=lambda phrase: (-len(phrase), phrase))
        pattern = rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b"
        found = list(re.finditer(pattern, text, re.IGNORECASE)) if kinds else []
        rng = np.random.default_rng(seed)
        chosen = sorted(int(i) for i in rng.permutation(len(found))[: self.count])
        return tuple(self._swap(found[i], kinds, rng) for i in chosen)

    def _swap(self, match: re.Match[str], kinds: Mapping[str, str], rng: np.random.Generator) -> WordSwap:
        was, kind = match.group(), kinds[match.group().lower()]
        others = [phrase for phrase in self.lexicon[kind] if phrase.lower() != was.lower()]
        now = others[int(rng.integers(len(others)))]
        if was[:1].isupper():
            now = now[:1].upper() + now[1:]
        return WordSwap(kind, match.start(), was, now)


class Cut(NamedTuple):
    """A text cut inside a sentence: `before + kept` is to be continued, `removed` is what stood there."""

    before: str  # the sentences before, as they were
    kept: str  # start of the sentence; ends with a word
    removed: str  # rest of the sentence

    @property
    def prefix(self) -> str:
        return self.before + self.kept


_SENTENCE = re.compile(r"\s*(?=\S).+?(?:(?<=[.!?])(?=\s|\Z)|(?=\s*\Z))", re.DOTALL)


def sentences(text: str) -> list[str]:
    """The sentences of a text with the space before each; together they are the text up to trailing space."""
    return [match.group() for match in _SENTENCE.finditer(text)]


def cut_sentences(text: str, seed: int) -> tuple[Cut, ...]:
    """Each sentence cut after a random word but the last, and the true sentences before it.

    BDHS (paper read) has each sentence completed by the blinded policy, given the true ones before it. A
    sentence of one word is cut before it.
    """
    rng = np.random.default_rng(seed)
    cuts: list[Cut] = []
    before = ""
    for sentence in sentences(text):
        ends = [match.end() for match in re.finditer(r"\S+", sentence)]
        end = ends[int(rng.integers(len(ends) - 1))] if len(ends) > 1 else 0
        cuts.append(Cut(before, sentence[:end], sentence[end:]))
        before += sentence
    return tuple(cuts)


def cut_at(text: str, share: float = 0.5) -> Cut:
    """A whole text cut after this share of its words, rounded.

    DropoutNTP of InternVL's MPO (code read) has the first half continued without the image.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"cut_at(share=...): expected 0 to 1, got {share}")
    ends = [0, *(match.end() for match in re.finditer(r"\S+", text))]
    end = ends[round(share * (len(ends) - 1))]
    return Cut("", text[:end], text[end:])
