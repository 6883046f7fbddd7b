"""Win probabilities within a group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.programs.choosing import known_scores
from pipelines.rewards.groups import win_probabilities
from pipelines.rollout import Draft, Step, Tools


@dataclass(frozen=True)
class WinProbability(Step):
    """Adds the part "win" to each score: the mean of sigmoid(r_i - r_j) over the set, j = i included.

    SPPO, arXiv 2405.00675 (released code read). Missing scores neither get one nor count.
    """

    of: str = "y"
    part: str = "win"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = known_scores(draft, self.of)
        wins = dict(zip(values, win_probabilities(list(values.values())), strict=True))
        scores = tuple(
            replace(score, parts={**score.parts, self.part: wins[i]})
            if score is not None and i in wins
            else score
            for i, score in enumerate(draft.scores)
        )
        return replace(draft, scores=scores)
