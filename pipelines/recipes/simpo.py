"""SimPO: length-normalised and reference-free, with a margin."""

from __future__ import annotations

from pipelines.objectives.margins import Constant
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Mean
from pipelines.recipe import Recipe
from pipelines.recipes._text import Pairs, one_stage, pairs_from
from pipelines.references import NoReference


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 2.0,
    gamma: float = 0.5,
) -> Recipe:
    """-log sigmoid(beta (log pi(w) / |w| - log pi(l) / |l|) - gamma).

    SimPO, arXiv 2405.14734 (TRL's code read). `gamma` is in nats inside the sigmoid; papers quote gamma /
    beta.
    """
    return one_stage(
        "simpo",
        paper="SimPO, arXiv 2405.14734",
        source="TRL's code read (numbers reproduced in tests/goldens)",
        rollout=pairs_from(pairs, samples, min_gap),
        objective=Pair("text", beta, scoring=Mean(against=None), margin=Constant(gamma)),
        reference=NoReference(),
    )
