"""A method as a value: `Recipe` holds stages, a stage holds plugs. No registry, no string dispatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipelines.comparisons import Compare
from pipelines.decoding import Ability
from pipelines.objectives.base import Objective
from pipelines.references import NoReference, Reference
from pipelines.rollout import Step
from pipelines.schedules import InOrder, Order


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """The reference becomes the policy."""


@dataclass(frozen=True, kw_only=True)
class MergeAdapter:
    """The LoRA adapter is merged into the base, and a new one starts; the merged base is the reference.

    `rank`: of the new adapter; None keeps the run's.
    """

    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Extrapolate:
    """theta <- theta + alpha (theta - theta'): accelerated preference optimisation.

    theta' is what the stage before had trained, before it was extrapolated; in the first of such stages the
    weights that it started from. With a fixed reward each round then moves by more: 1 + alpha, 1 + alpha +
    alpha^2, ..., towards 1 / (1 - alpha).
    """

    alpha: float


@dataclass(frozen=True, kw_only=True)
class ResetOptimizer:
    """Moments and warm-up start anew."""


Action = Refresh | MergeAdapter | Extrapolate | ResetOptimizer


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: what is rolled out, compared and optimised, in which order, against what.

    Raises ValueError when its slots contradict each other, naming the term and the fix.
    """

    rollout: Step
    compare: Compare
    objective: Objective
    reference: Reference = field(default_factory=Reference)
    order: Order = field(default_factory=InOrder)
    share: float = 1.0  # of the run's steps, relative to the other stages
    init: Literal["previous", "start"] = "previous"  # "start": from the model of the run (rebirth)
    trainable: tuple[str, ...] = ()  # regular expressions over parameter names; none: everything
    uses: int = 1  # times that each comparison is trained on, at least `groups_per_step` groups apart
    replay: float = 0.0  # share of a step's comparisons that are drawn from earlier ones of this stage
    max_lag: int | None = None  # tightens the run's
    then: tuple[Action, ...] = ()  # at its end, before one publication

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(  # a user's recipe may hold a bare term
                f"objective: expected a weighted sum of terms, got {self.objective!r}; write 1.0 * ... for "
                "one term"
            )
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def freshness(self) -> int | None:
        """The tightest lag that the stage or a term asks for; None: the run's alone."""
        return min((lag for lag in (self.max_lag, self.objective.max_lag) if lag is not None), default=None)

    @property
    def needs(self) -> frozenset[Ability]:
        """Abilities of the engine."""
        return self.rollout.needs

    def _contradictions(self) -> Iterator[str]:
        objective, compare = self.objective, self.compare
        if missing := objective.edges - compare.emits:
            yield (
                f"the objective reads the edges {sorted(missing)} but `compare` emits only "
                f"{sorted(compare.emits)}; add them to `compare` or remove the terms"
            )
        if missing := objective.roles - compare.roles:
            yield (
                f"the objective reads the roles {sorted(missing)} but `compare` emits only "
                f"{sorted(compare.roles)}; add Cells(...) to `compare` or remove the terms"
            )
        if missing := objective.spans - compare.spans:
            yield (
                f"the objective reads the token spans {sorted(missing)} but `compare` makes only "
                f"{sorted(compare.spans)}; add the step that marks them"
            )
        if missing := compare.takes - self.rollout.makes - {"x"}:
            yield (
                f"`compare` takes {sorted(missing)} but the program makes only {sorted(self.rollout.makes)}; "
                "add the step that makes it (a media edge needs a damage, for example)"
            )
        if "reference" in objective.views and isinstance(self.reference, NoReference):
            readers = [repr(t) for _, t in objective.terms if "reference" in t.views]
            yield (
                f"{readers[0]} reads a reference, but the stage has none; use a reference, or a scoring "
                "with against=None"
            )
        fresh = objective.max_lag
        if fresh is not None and (self.uses > 1 or self.replay > 0):
            yield (
                f"the objective needs samples at most {fresh} versions old, but uses={self.uses} and "
                f"replay={self.replay:g} train on older ones; set uses=1 and replay=0"
            )
        if not 0 <= self.replay < 1 or self.uses < 1 or not self.share > 0:
            yield (
                f"expected 0 <= replay < 1, uses >= 1 and share > 0, got {self.replay:g}, {self.uses} and "
                f"{self.share:g}"
            )
        if self.max_lag is not None and self.max_lag < 0:
            yield f"expected max_lag of at least 0 published versions, got {self.max_lag}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published method. `source` says what its formulas were taken from, and how sure that is."""

    name: str
    paper: str  # title and arXiv id
    source: str  # "code read", "paper read", "third-party note", "from memory"; may name what is inferred
    stages: tuple[Stage, ...]
    experimental: bool = False  # the primary text was not seen: see `source`

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"recipe {self.name!r} has no stage")

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset(need for stage in self.stages for need in stage.needs)

    def ends(self, steps: int) -> tuple[int, ...]:
        """The last step (1-based) of each stage when the run has `steps`: cumulative, rounded, all covered.

        Raises ValueError when a stage would get no step.
        """
        total = sum(stage.share for stage in self.stages)
        ends: list[int] = []
        upto = 0.0
        for stage in self.stages:
            upto += stage.share
            ends.append(round(steps * upto / total))
        if any(end <= start for start, end in zip([0, *ends], ends, strict=False)):
            raise ValueError(
                f"recipe {self.name!r} has {len(self.stages)} stages, and with learner.steps={steps} one of "
                "them gets no step; raise learner.steps"
            )
        return tuple(ends)

    def stage_at(self, step: int, steps: int) -> int:
        """Index of the stage that trains step `step` (1-based)."""
        return next((i for i, end in enumerate(self.ends(steps)) if step <= end), len(self.stages) - 1)
