"""What the recipes of text methods share: where their pairs come from, and one stage around an objective."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Compare, Edges
from pipelines.objectives.base import Objective, Term
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.given import Offline
from pipelines.recipe import Recipe, Stage
from pipelines.references import Reference
from pipelines.rollout import Step

Pairs = Literal["online", "recorded"]  # best and worst of fresh samples; columns `chosen` and `rejected`
TEXT = Edges({"text": ("w@x", "l@x")})


def pairs_from(pairs: Pairs, samples: int, min_gap: float = 0.0) -> Step:
    """The program that makes "w" and "l"."""
    return best_and_worst(samples, min_gap) if pairs == "online" else Offline()


def one_stage(
    name: str,
    *,
    paper: str,
    source: str,
    rollout: Step,
    objective: Term | Objective,
    compare: Compare = TEXT,
    reference: Reference | None = None,
    experimental: bool = False,
) -> Recipe:
    """A recipe with a single stage."""
    return Recipe(
        name=name,
        paper=paper,
        source=source,
        experimental=experimental,
        stages=(
            Stage(
                rollout=rollout,
                compare=compare,
                objective=1.0 * objective,
                reference=reference or Reference(),
            ),
        ),
    )
