"""A control: labels that carry no information, from the same code path as real ones."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.types import Prompt, Response, Score, canonical_digest


@dataclass(frozen=True)
class Random:
    """A number in [0, 1) that depends on seed, prompt and answer, but on nothing about them.

    Equal answers to one prompt score alike, as they do with a real reward; another prompt scores them anew.
    """

    seed: int = 0

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        digest = canonical_digest([self.seed, prompt.id, prompt.digest, list(response.tokens)])
        return Score(value=int(digest[:13], 16) / 16**13)
