"""Token ids corrupted, and where two answers differ."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import repeat
from typing import Literal

import numpy as np

from pipelines.types import NOT_SCORED

Change = Literal["equal", "replace", "delete", "insert"]


@dataclass(frozen=True)
class TokenCorruption:
    """Replaces a `share` of the tokens, drawn in proportion to weights without replacement.

    TARS (code read) corrupts 5% of both answers' tokens, more likely those with a low image similarity, by a
    random id or a mask, and does not score them. The count is rounded, but one at least for a share above 0
    (inferred), and at most the number of positive weights. Give special tokens, as the end of the sequence,
    weight 0. A random id is another one of `vocabulary`, if it has one; `mask_id`, if given, takes its place.

    Raises ValueError for a share outside 0..1, or no id to put in.
    """

    vocabulary: Sequence[int] = field(default=(), repr=False)
    share: float = 0.05
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"TokenCorruption(share=...): expected 0 to 1, got {self.share}")
        if self.mask_id is None and not self.vocabulary:
            raise ValueError("TokenCorruption: expected a vocabulary of ids to draw from, or a mask_id")

    def __call__(
        self, tokens: Sequence[int], weights: Sequence[float], seed: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(tokens fed, targets scored); a target is NOT_SCORED where the token was corrupted.

        Raises ValueError unless there is one finite weight of at least 0 per token.
        """
        values = np.asarray(weights, dtype=np.float64)
        if values.shape != (len(tokens),) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                f"token corruption: expected {len(tokens)} finite weights of at least 0, got {weights!r}"
            )
        fed, targets = list(tokens), list(tokens)
        wanted = max(round(self.share * len(tokens)), 1) if self.share > 0 else 0
        count = min(wanted, int((values > 0).sum()))
        rng = np.random.default_rng(seed)
        shares = values / values.max() if count else values  # two steps, since a sum could overflow
        places = rng.choice(len(fed), count, replace=False, p=shares / shares.sum()) if count else ()
        for place in map(int, places):
            fed[place] = self._other(fed[place], rng)
            targets[place] = NOT_SCORED
        return tuple(fed), tuple(targets)

    def _other(self, token: int, rng: np.random.Generator) -> int:
        if self.mask_id is not None:
            return self.mask_id
        others = [other for other in self.vocabulary if other != token]
        return others[int(rng.integers(len(others)))] if others else token

    @property
    def strength(self) -> float:
        """The share."""
        return self.share


def sentence_cuts(
    tokens: Sequence[int], ends: Collection[int], seed: int
) -> tuple[tuple[int, int, int], ...]:
    """A random point in each sentence, as (start, cut, end) with start < cut < end; for `tokens[:cut]` to be
    continued, as BDHS (paper read) does.

    `ends` are the ids that end a sentence; what follows the last one is a sentence too. A sentence of one
    token, as is a lone end of sequence, cannot be cut and is left out.
    """
    rng = np.random.default_rng(seed)
    stops = [place + 1 for place, token in enumerate(tokens) if token in ends]
    starts = [0, *stops]
    spans = zip(starts, [*stops, len(tokens)], strict=True)
    return tuple((start, int(rng.integers(start + 1, end)), end) for start, end in spans if end - start > 1)


def diff_classes(
    a: Sequence[Hashable], b: Sequence[Hashable]
) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """How each item of a and of b takes part in the change from a to b.

    In a: "equal", "replace" or "delete"; in b: "equal", "replace" or "insert". For fine-grained edits
    (third-party note, credit rule from memory) with a the answer and b its correction: what b inserts or
    replaces is good, what a loses is bad.
    """
    classes_a: list[Change] = ["equal"] * len(a)
    classes_b: list[Change] = ["equal"] * len(b)
    # Without the junk heuristic, which would ignore frequent tokens of long answers.
    for change, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        classes_a[a0:a1] = repeat(change, a1 - a0)
        classes_b[b0:b1] = repeat(change, b1 - b0)
    return tuple(classes_a), tuple(classes_b)


def diff_spans(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """1 where a token takes part in the difference of two answers, 0 where both have it.

    CHiP (code read) weighs these. RRPO (code read) has a language model mark the differing concepts; these
    spans stand in for them.
    """
    classes_a, classes_b = diff_classes(a, b)
    return tuple(float(c != "equal") for c in classes_a), tuple(float(c != "equal") for c in classes_b)
