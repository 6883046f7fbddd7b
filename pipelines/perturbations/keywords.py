"""Keywords of an answer by graph rank: the words whose regions are worth damaging."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = Callable[[str], NDArray[np.float64]]

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
# Function words, and words that speak of the picture as such. Number words stay: they can name things.
_STOP = """
a about above across after again against all along also although am among an and another any are aren't
around as at be because been before being below beside between both but by can can't cannot could couldn't
did didn't do does doesn't doing don't down during each either else etc even ever every few for from further
had hadn't has hasn't have haven't having he her here hers herself him himself his how however i if in into
is isn't it it's its itself just like may maybe me might more most much must my myself near neither no nor
not of off often on once only onto or other our ours out over own per perhaps quite rather same shall she
should shouldn't since so some somewhat such than that that's the their theirs them themselves then there
there's these they this those though through throughout thus to together too toward towards under until up
upon us very was wasn't we were weren't what when where whether which while who whom whose why will with
within without won't would wouldn't yes yet you your yours yourself answer appear appears depict depicted
depicts describe described describes feature features image images overall photo photograph picture pictures
scene scenes seem seems see seen show shown shows visible
"""
STOP_WORDS = frozenset(_STOP.split())


@lru_cache(maxsize=4096)
def hashed_ngrams(word: str, size: int = 256) -> NDArray[np.float64]:
    """A word as counts of its character 2- to 4-grams hashed into `size` signed buckets; [size].

    Needs no download. It knows spelling, not meaning: "dog" is near "dogs" and not near "puppy".
    """
    padded = f"<{word}>"
    vector = np.zeros(size)
    for n in (2, 3, 4):
        for start in range(len(padded) - n + 1):
            code = zlib.crc32(padded[start : start + n].encode())
            vector[code % size] += 1.0 if code & 0x10000 else -1.0
    vector.flags.writeable = False
    return vector


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0


def stem(word: str) -> str:
    """English plural and possessive endings removed; words with one stem are one topic of the graph."""
    word = re.sub(r"['\u2019]s$", "", word)
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if plural else word


@dataclass(frozen=True)
class GraphRank:
    """The `top` words of a text by weighted PageRank on a multipartite graph.

    MFPO, arXiv 2410.15334, step 1 (third-party note). Nodes are the distinct words that are no stop words.
    The weight between words i and j is their proximity, the sum over their positions of
    1 / (1 + |l_i - l_j|^phi), plus gamma times the cosine of their word vectors; what flows *into* word i is
    multiplied by exp(-decay l_i) with its first position l_i. Positions count words.

    Inferred: the parts of the graph are stems (forms of one word do not vote for each other), the boost acts
    on incoming weight as in multipartite keyphrase ranking, weights that are not positive give no edge, and
    all default values.
    """

    top: int = 5
    phi: float = 1.0
    gamma: float = 1.0
    decay: float = 0.05  # lambda of the paper
    damping: float = 0.85
    stop_words: frozenset[str] = field(default=STOP_WORDS, repr=False)
    vectors: Vectors = field(default=hashed_ngrams, repr=False)

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"GraphRank(top=...): expected at least 1, got {self.top}")

    def __call__(self, text: str) -> tuple[str, ...]:
        """Lower-cased keywords, best first; at most `top`, none for a text without candidates."""
        ranks = self.rank(text)
        # Rounding makes ties independent of the last bits of the power iteration: the earlier word wins.
        return tuple(sorted(ranks, key=lambda word: -round(ranks[word], 8))[: self.top])

    def rank(self, text: str) -> dict[str, float]:
        """PageRank of every candidate word in order of first appearance; sums to 1."""
        places: dict[str, list[int]] = {}
        for position, word in enumerate(words_of(text)):
            if word.replace("\u2019", "'") not in self.stop_words:
                places.setdefault(word, []).append(position)
        if len(places) < 2:
            return dict.fromkeys(places, 1.0)
        return self._page_rank(places)

    def _page_rank(self, places: dict[str, list[int]]) -> dict[str, float]:
        import networkx

        library: Any = networkx
        graph = library.DiGraph()
        graph.add_nodes_from(places)
        words = list(places)
        for i, first in enumerate(words):
            for second in words[i + 1 :]:
                weight = self._weight(first, second, places)
                if stem(first) == stem(second) or weight <= 0:
                    continue
                graph.add_edge(second, first, weight=weight * math.exp(-self.decay * places[first][0]))
                graph.add_edge(first, second, weight=weight * math.exp(-self.decay * places[second][0]))
        ranks = library.pagerank(graph, alpha=self.damping, weight="weight", max_iter=1000, tol=1e-12)
        return {word: float(ranks[word]) for word in words}

    def _weight(self, first: str, second: str, places: dict[str, list[int]]) -> float:
        proximity = sum(1 / (1 + abs(p - q) ** self.phi) for p in places[first] for q in places[second])
        return proximity + self.gamma * _cosine(self.vectors(first), self.vectors(second))


def words_of(text: str) -> Sequence[str]:
    """Lower-cased words of a text in order, as `GraphRank` sees them."""
    return [match.group().lower() for match in WORD.finditer(text)]
