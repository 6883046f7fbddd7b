"""A fake of the tools that group programs run on, and prompts to run them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipelines.perturbations.base import DamageRequest, damage
from pipelines.rollout import Draft
from pipelines.types import Behaviour, Media, MediaTable, Message, Part, Prompt, Response, Rollout, Score

ANSWERS = ("a red seven top left .", "a red seven top left and a blue one bottom right .")
GOLD = {
    "boxes": [
        {"box": [2, 3, 12, 20], "words": ["red", "seven", "top left"]},
        {"box": [31, 22, 56, 40], "words": ["blue", "one", "bottom right"]},
    ]
}


@dataclass
class FakeTools:
    """Gives prepared answers and scores; damages in place. Remembers what it was asked."""

    answers: Sequence[str] = ANSWERS
    scores: Sequence[float | None] = (1.0, 0.0)
    seeds: dict[str, list[int]] = field(default_factory=lambda: {"sample": [], "damage": []})
    asked: list[int] = field(default_factory=list)

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[Rollout]:
        self.seeds["sample"].append(seed)
        self.asked.append(n)
        behaviour = Behaviour(
            stream="policy", decoder={"temperature": 1.0}, oldest=3, newest=3, logps=(-0.5,)
        )
        return [
            Rollout(prompt=prompt, response=Response(tokens=(i, 2), text=text), behaviour=behaviour)
            for i, text in enumerate(self.answers)
        ]

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        return [
            Score(value=None, missing="no verdict") if value is None else Score(value=value)
            for value in self.scores
        ]

    async def damage(self, media: Media, request: DamageRequest) -> Media:
        self.seeds["damage"].append(request.seed)
        return damage(media, request)


@pytest.fixture
def make_tools() -> Callable[..., FakeTools]:
    return FakeTools


@pytest.fixture
def make_draft() -> Callable[..., Draft]:
    """A draft whose prompt shows `images` random pictures, 40 high and 56 wide."""

    def build(images: int = 1) -> Draft:
        rng = np.random.default_rng(11)
        pictures = [
            Media(kind="image", space="rgb8", payload=rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
            for _ in range(images)
        ]
        parts = (*(Part(kind="image", digest=m.digest) for m in pictures), Part(kind="text", text="describe"))
        prompt = Prompt(id="row-0", messages=(Message(role="user", parts=parts),), gold=GOLD)
        return Draft(prompts={"x": prompt}, media={m.digest: m for m in pictures})

    return build
