"""Choosing one answer of many at inference time: pure functions, for serving and evaluation alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Score

Vector = NDArray[np.float64]


def best_of_n(scores: Sequence[Score]) -> int | None:
    """Index of the highest score, the first one among equals; None when every score is missing."""
    known = [(score.value, -index) for index, score in enumerate(scores) if score.value is not None]
    return -max(known)[1] if known else None


def consensus(texts: Sequence[str], similarity: Callable[[str, str], float]) -> int:
    """Index of the answer most like all others on average: minimum Bayes risk with a similarity as gain.

    Kumar and Byrne 2004 (from memory). The first one among equals; raises ValueError without answers.
    """
    if not texts:
        raise ValueError("consensus needs at least one answer")
    support = [
        sum(similarity(text, other) for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return int(np.argmax(support))


def unit(direction: Sequence[float]) -> Vector:
    """A direction of length 1, [m]. Raises ValueError for one without length."""
    v = np.asarray(direction, dtype=np.float64)
    length = float(np.linalg.norm(v))
    if not length > 0 or not math.isfinite(length):
        raise ValueError(f"expected a direction with a length, got {list(direction)}")
    return v / length


def along(direction: Sequence[float], rewards: Sequence[Sequence[float]]) -> int:
    """Index of the answer whose reward vector reaches furthest along a direction: argmax_i v . r_i.

    `rewards`: [answers, m]; the first one among equals. DPA's rejection sampling (arXiv 2402.18571; README
    read, loop from memory).
    """
    return int(np.argmax(np.asarray(rewards, dtype=np.float64) @ unit(direction)))


@dataclass(frozen=True)
class Neighbourhood:
    """Robust preference selection: answer for k directions near the wanted one, keep what serves it best.

    RPS (arXiv 2510.20498; note read): k = 5 directions within 30 degrees of v*, one answer to each, and
    argmax_i v* . r(x, y_i). A model trained on few directions answers better a little beside a rare one.
    The distribution inside the cone is inferred: a uniform angle and a uniform direction of the turn; the
    first direction is v* itself. With 0 degrees it is best-of-k.

    Raises ValueError for k < 1 or an angle outside [0, 90].
    """

    direction: tuple[float, ...]  # v*, any length
    k: int = 5
    degrees: float = 30.0

    def __post_init__(self) -> None:
        unit(self.direction)
        if self.k < 1 or not 0 <= self.degrees <= 90:
            raise ValueError(
                f"Neighbourhood: expected k >= 1 and 0 to 90 degrees, got {self.k}, {self.degrees}"
            )

    def directions(self, seed: int) -> Vector:
        """[k, m] unit vectors within the cone; a pure function of the seed."""
        rng = np.random.default_rng(seed)
        centre = unit(self.direction)
        found = [centre]
        while len(found) < self.k:
            turn = rng.normal(size=centre.shape)
            turn -= (turn @ centre) * centre
            angle = math.radians(self.degrees) * rng.uniform()
            length = float(np.linalg.norm(turn))
            found.append(math.cos(angle) * centre + math.sin(angle) * turn / length if length else centre)
        return np.stack(found)

    def select(self, rewards: Sequence[Sequence[float]]) -> int:
        """Index of the answer to keep, by the wanted direction alone; `rewards`: [k, m]."""
        return along(self.direction, rewards)
