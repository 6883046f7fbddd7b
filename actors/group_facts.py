"""Numbers to log of one group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipelines.types import Media, Rollout, Score


def facts_of(
    rollouts: Sequence[Rollout], scores: Sequence[Score], damaged: Sequence[Media]
) -> dict[str, float]:
    """Numbers to log of one group; a number that nothing tells of is absent.

    reward, reward_best, reward_worst: over the answers that have a score; missing: share of those that have
    none; hallucination: wrong / (right + wrong) mentions over all answers; sampled_tokens; finished: share of
    answers that ended by themselves; fallback: share of damaged media without a region.
    """
    facts: dict[str, float] = {}
    values = [score.value for score in scores if score.value is not None]
    if values:
        facts |= {
            "reward": statistics.fmean(values),
            "reward_best": max(values),
            "reward_worst": min(values),
        }
    if scores:
        facts["missing"] = 1 - len(values) / len(scores)
    right = sum(score.parts.get("right", 0.0) for score in scores)
    wrong = sum(score.parts.get("wrong", 0.0) for score in scores)
    if right + wrong > 0:
        facts["hallucination"] = wrong / (right + wrong)
    if rollouts:
        facts["sampled_tokens"] = sum(len(rollout.response.tokens) for rollout in rollouts)
        facts["finished"] = statistics.fmean(rollout.response.finished for rollout in rollouts)
    if damaged:
        facts["fallback"] = statistics.fmean(_fell_back(media) for media in damaged)
    return facts


def _fell_back(media: Media) -> bool:
    """Whether a selector found nothing, so that the whole media was damaged."""
    return media.op is not None and bool(media.op.params.get("fallback", False))
