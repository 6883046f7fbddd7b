"""Captions and answers corrected with as few changes as possible, and errors put into them.

They stand in for an expert who edits the model's own answer (OPA-DPO) and for a language model that injects
errors of object, attribute and relation into a right one (POVID). `gold` is the row: `scene`, `kind`,
`answer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.worlds.glyphs.captions import Mention, mentions_of, read_caption, write_caption
from pipelines.worlds.glyphs.prior import invented
from pipelines.worlds.glyphs.questions import read_answer
from pipelines.worlds.glyphs.scenes import Scene
from pipelines.worlds.glyphs.vocabulary import CELLS, COLOURS, DIGITS

ErrorKind = Literal["object", "attribute", "relation", "invented", "answer"]

#: Kinds of words that can stand for each other, for `perturbations.text.SwapWords`.
LEXICON: dict[str, tuple[str, ...]] = {"object": DIGITS, "attribute": COLOURS, "relation": CELLS}
#: Class of `perturbations.constraints` -> what to say in this world's words; other classes cannot be said.
INSTRUCTIONS = {
    "Mentions": "say {value} .",
    "Avoids": "say not {value} .",
    "StartsWith": "first say {value} .",
    "EndsWith": "last say {value} .",
}
_CHOICES = {"digit": len(DIGITS), "colour": len(COLOURS), "cell": len(CELLS)}
_FIELDS: dict[ErrorKind, str] = {"object": "digit", "attribute": "colour", "relation": "cell"}
MOST_ERRORS = 5


class Injected(NamedTuple):
    """One error that was put in."""

    kind: ErrorKind
    was: str  # empty where an object was invented
    now: str


def correct(text: str, gold: Mapping[str, Any]) -> str:
    """The text without false mentions, changed as little as can be; one without errors comes back as it is.

    Each false mention becomes the unmentioned object that shares the most of digit, colour and cell with
    it, or is left out when none shares any; clauses outside the grammar and repeated mentions are left out.
    Objects that the text does not speak of stay unmentioned, unless nothing would be left: then the true
    caption is said. A wrong answer to a question becomes the true one.
    """
    if gold["kind"] != "caption":
        return text if read_answer(text) == gold["answer"] else str(gold["answer"])
    scene, reading = Scene.from_json(gold["scene"]), read_caption(text)
    there = mentions_of(scene)
    said = set(there).intersection(reading.mentions)
    if not reading.malformed and len(said) == len(reading.mentions):
        return text
    free = [mention for mention in there if mention not in said]
    kept: list[Mention] = []
    for mention in reading.mentions:
        if mention not in said and free:
            nearest = max(free, key=lambda other: _shared(mention, other))
            if _shared(mention, nearest):
                free.remove(nearest)
                mention = nearest
        if mention in there and mention not in kept:
            kept.append(mention)
    return write_caption(kept or there)


def _shared(a: Mention, b: Mention) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


def inject(
    text: str, gold: Mapping[str, Any], seed: int, errors: int = 1
) -> tuple[str, tuple[Injected, ...]]:
    """The text with `errors` more false mentions, 1 to 5, and what they are, in the order of injection.

    An error is, with equal chances, a true mention changed in its digit, its colour or its cell, or an
    invented object: the one that the language prior suggests while a cell is free. The other mentions stay;
    clauses outside the grammar are left out. A question's answer can be wrong once, so that `errors` must be
    1; it becomes the opposite of the true one.

    Raises ValueError for a number of errors that cannot be.
    """
    if gold["kind"] != "caption":
        return _flipped(gold, errors)
    if not 1 <= errors <= MOST_ERRORS:
        raise ValueError(f"inject(errors=...): expected 1 to {MOST_ERRORS}, got {errors}")
    rng = np.random.default_rng(seed)
    there = set(mentions_of(Scene.from_json(gold["scene"])))
    mentions = list(read_caption(text).mentions)
    done: list[Injected] = []
    for _ in range(errors):
        right = [i for i, m in enumerate(mentions) if m in there and mentions.count(m) == 1]
        kinds: list[ErrorKind] = [*_FIELDS, "invented"] if right else ["invented"]
        kind = kinds[int(rng.integers(len(kinds)))]
        used = there.union(mentions)
        place = right[int(rng.integers(len(right)))] if kind != "invented" else len(mentions)
        was = mentions[place] if kind != "invented" else None
        now = _altered(was, _FIELDS[kind], used, rng) if was else _invented(mentions, used, rng)
        mentions[place : place + 1] = [now]
        done.append(Injected(kind, _clause(was) if was else "", _clause(now)))
    return write_caption(mentions), tuple(done)


def _altered(mention: Mention, name: str, used: set[Mention], rng: np.random.Generator) -> Mention:
    """One property changed, to what is neither there nor said."""
    options = [mention._replace(**{name: value}) for value in range(_CHOICES[name])]
    false = [option for option in options if option not in used]
    return false[int(rng.integers(len(false)))] if false else _random(used, rng)


def _invented(mentions: list[Mention], used: set[Mention], rng: np.random.Generator) -> Mention:
    suggested = invented(mentions)
    return suggested if suggested is not None and suggested not in used else _random(used, rng)


def _random(used: set[Mention], rng: np.random.Generator) -> Mention:
    """Any mention of what is neither there nor said; of 120 at most 4 are there, and few are said."""
    while (drawn := Mention(*(int(rng.integers(n)) for n in _CHOICES.values()))) in used:
        pass
    return drawn


def _clause(mention: Mention) -> str:
    return write_caption([mention]).removesuffix(" .")


def _flipped(gold: Mapping[str, Any], errors: int) -> tuple[str, tuple[Injected, ...]]:
    if errors != 1:
        raise ValueError(f"inject(errors=...): a yes/no answer can be wrong once, got {errors}")
    truth = str(gold["answer"])
    wrong = "no" if truth == "yes" else "yes"
    return wrong, (Injected("answer", truth, wrong),)
