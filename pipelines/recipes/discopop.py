"""DiscoPOP: a discovered mix of logistic and exponential loss."""

from __future__ import annotations

from pipelines.objectives.links import DiscoPop
from pipelines.objectives.pair import Pair
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    temperature: float = 0.05,
) -> Recipe:
    """-(1 - m) log sigmoid(z) + m exp(-z), z = beta (rho_w - rho_l), m = sigmoid(z / tau).

    DiscoPOP, arXiv 2406.08414 (TRL's code read). Not convex: for tau = 0.05 it rises through 0.
    """
    return one_stage(
        "discopop",
        paper="Discovering Preference Optimization Algorithms with and for LLMs, arXiv 2406.08414",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, DiscoPop(temperature)),
    )
