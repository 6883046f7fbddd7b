"""How alike two texts are, in [0, 1], by their words."""

from __future__ import annotations

import math
import re
from collections import Counter

_WORDS = re.compile(r"[\w'-]+")


def words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def token_jaccard(a: str, b: str) -> float:
    """|A and B| / |A or B| over the sets of words; 1 for two texts without words."""
    left, right = set(words(a)), set(words(b))
    return len(left & right) / len(left | right) if left | right else 1.0


def bleu(candidate: str, reference: str, order: int = 4) -> float:
    """Sentence BLEU (Papineni et al. 2002; from memory) with one reference.

    Geometric mean of clipped n-gram precisions up to `order`, or the length of the shorter text where that is
    less, times the brevity penalty exp(1 - r / c) for candidates shorter than the reference. A zero precision
    counts as half an n-gram (NIST-style smoothing), so that one missing 4-gram does not hide all likeness.
    """
    c, r = words(candidate), words(reference)
    if not c or not r:
        return float(c == r)
    top = min(order, len(c), len(r))
    logs = 0.0
    for n in range(1, top + 1):
        ours, theirs = _ngrams(c, n), _ngrams(r, n)
        hits = sum((ours & theirs).values())
        if n == 1 and hits == 0:
            return 0.0
        logs += math.log(max(hits, 0.5) / sum(ours.values()))
    return min(1.0, math.exp(1 - len(r) / len(c))) * math.exp(logs / top)


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
