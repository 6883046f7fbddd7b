"""Numbers to log of one group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipelines.types import Media, Rollout, Score


def facts_of(
    rollouts: Sequence[Rollout], scores: Sequence[Score], damaged: Sequence[Media], lengths: Sequence[int]
) -> dict[str, float]:
    """Numbers to log of one group; a number that nothing tells of is absent. `lengths`: tokens of each scored
    answer.

    reward, reward_best, reward_worst: over the answers that have a score; reward_variance, length_variance,
    reward_length_covariance: of two or more of them, lengths in tokens; missing: share of those that have
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
        facts |= _spread([(s.value, n) for s, n in zip(scores, lengths, strict=True) if s.value is not None])
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


def _spread(answers: Sequence[tuple[float, int]]) -> dict[str, float]:
    """How reward and length vary, together and each, around their means over the group."""
    if len(answers) < 2:
        return {}
    rewards, lengths = zip(*answers, strict=True)
    reward, length = statistics.fmean(rewards), statistics.fmean(lengths)
    return {
        "reward_variance": statistics.fmean((r - reward) ** 2 for r in rewards),
        "length_variance": statistics.fmean((n - length) ** 2 for n in lengths),
        "reward_length_covariance": statistics.fmean((r - reward) * (n - length) for r, n in answers),
    }


def _fell_back(media: Media) -> bool:
    """Whether a selector found nothing, so that the whole media was damaged."""
    return media.op is not None and bool(media.op.params.get("fallback", False))
