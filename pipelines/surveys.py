"""How hard a prompt is, before a stage is trained on it."""

from __future__ import annotations

from pipelines.rollout import Tools
from pipelines.schedules import Order, meaning, semantic_entropy
from pipelines.types import MediaTable, Prompt


async def difficulty_of(order: Order, prompt: Prompt, media: MediaTable, tools: Tools, seed: int) -> float:
    """Difficulty by the order's key (`schedules.Key`): larger is harder. Gaps and strengths count negatively.

    Raises ValueError for a row without the columns that the key reads, or answers without two scores.
    """
    if order.key == "strength":
        return -float(str(_column(prompt, "strength")))
    if order.key == "reference_gap":
        sides = [await tools.encode(str(_column(prompt, c)), "gold") for c in ("chosen", "rejected")]
        chosen, rejected = await tools.probe(prompt, media, sides)
        return sum(rejected.logps) - sum(chosen.logps)
    rollouts = await tools.sample(prompt, media, order.samples, seed)
    if order.key == "entropy":
        return semantic_entropy([meaning(rollout.response.text) for rollout in rollouts])
    scores = await tools.score(rollouts, media)
    values = [score.value for score in scores if score.value is not None]
    if len(values) < 2:
        why = next((score.missing for score in scores if score.missing), "")
        raise ValueError(f"survey of prompt {prompt.id!r}: {len(values)} of {len(scores)} scores; {why}")
    return min(values) - max(values)


def _column(prompt: Prompt, name: str) -> object:
    if name not in prompt.gold:
        raise ValueError(
            f"survey: the row of prompt {prompt.id!r} has no column {name!r}; it has {sorted(prompt.gold)}"
        )
    return prompt.gold[name]
