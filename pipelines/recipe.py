"""A method as a value: `Recipe` holds stages, a stage holds plugs. No registry, no string dispatch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.comparisons import Compare
from pipelines.objectives.base import Objective
from pipelines.rollout import Step
from pipelines.schedules import InOrder, Order


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: what is rolled out, compared and optimised, and in which order."""

    rollout: Step
    compare: Compare
    objective: Objective
    order: Order = field(default_factory=InOrder)

    def __post_init__(self) -> None:
        missing = self.objective.edges - self.compare.emits
        if missing:
            raise ValueError(
                f"the objective reads the edges {sorted(missing)} but `compare` emits only "
                f"{sorted(self.compare.emits)}; add them to `compare` or remove the terms"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published method. `source` says what its formulas were taken from, and how sure that is."""

    name: str
    paper: str  # title and arXiv id
    source: str  # "code read", "paper read", "third-party note", "from memory"; may name what is inferred
    stage: Stage
