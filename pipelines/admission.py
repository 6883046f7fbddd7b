"""When a generator may take another prompt: the bound on how old the weights behind a comparison can be,
and the barrier between two stages.

Lag is counted in *published versions*. A version is published after every `sync_every` learner steps, and
after the last step of each stage. The comparisons of step s (1-based) are trained when version `due(s)` is
out, so a generator at proved version u may add a group, which would belong to step s, only while

    due(s) - u <= max_lag,    s = (trained + live) // groups_per_step + 1

With `max_lag = 0` and `sync_every = 1` this is strictly on-policy: the next step is sampled only from the
weights of the last one. Nothing of a stage is admitted before the stage is open, which the ledger decides,
and by a generator that has not proved the version that ended the stage before.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a ledger starts without torch, which recipes import
    from pipelines.recipe import Recipe
    from pipelines.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One stage of a recipe as the flow sees it."""

    last: int  # its last learner step, 1-based
    max_lag: int  # published versions
    uses: int = 1  # times that each comparison is trained on
    replay: float = 0.0  # share of a step's comparisons that come from earlier steps of the stage

    def __post_init__(self) -> None:
        if self.max_lag < 0 or self.uses < 1 or not 0 <= self.replay < 1:
            raise ValueError(
                "stage: expected max_lag >= 0, uses >= 1 and 0 <= replay < 1, got "
                f"{self.max_lag}, {self.uses} and {self.replay:g}"
            )

    @property
    def reuses(self) -> bool:
        return self.uses > 1 or self.replay > 0


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The bound, the barriers, and the end of the run: no more groups than its steps need."""

    sync_every: int  # learner steps between two published versions
    groups_per_step: int
    stages: tuple[Stretch, ...]

    def __post_init__(self) -> None:
        for name in ("sync_every", "groups_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"admission: {name} is at least 1, got {getattr(self, name)}")
        lasts = [stage.last for stage in self.stages]
        if not lasts or any(last <= before for before, last in zip([0, *lasts], lasts, strict=False)):
            raise ValueError(f"admission: each stage has at least one step, got stages that end at {lasts}")

    @property
    def max_steps(self) -> int:
        return self.stages[-1].last

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Last steps of all stages but the last one."""
        return tuple(stage.last for stage in self.stages[:-1])

    def first(self, stage: int) -> int:
        """The first step of a stage."""
        return self.stages[stage - 1].last + 1 if stage else 1

    def stage_at(self, step: int) -> int:
        """Index of the stage that trains step `step`; the last one for steps after the end."""
        lasts = [stage.last for stage in self.stages]
        return min(bisect_left(lasts, step), len(lasts) - 1)

    def publishes(self, step: int) -> bool:
        """Whether a version is published after step `step`, whatever follows."""
        return step % self.sync_every == 0 or step in self.boundaries

    def due(self, step: int) -> int:
        """Number of the version that is published before step `step` is trained."""
        between = sum(last < step and last % self.sync_every > 0 for last in self.boundaries)
        return (step - 1) // self.sync_every + between

    def admits(self, version: int, stage: int, trained: int, live: int) -> bool:
        """Whether a generator at proved `version` may add a group to `stage`, which is open.

        `trained` and `live` (leased + buffered + sealed) count groups of the whole run.
        """
        step = (trained + live) // self.groups_per_step + 1
        stretch = self.stages[stage]
        proved = version >= self.due(self.first(stage))
        return proved and step <= stretch.last and self.due(step) - version <= stretch.max_lag


def admission_of(settings: Settings, recipe: Recipe) -> Admission:
    """The bound of a run. A stage or a term may tighten the run's `max_lag`, never loosen it.

    Raises ValueError when the run has fewer steps than the recipe has stages.
    """
    allowed = settings.sync.max_lag
    stages = tuple(
        Stretch(
            last=last,
            max_lag=allowed if stage.freshness is None else min(allowed, stage.freshness),
            uses=stage.uses,
            replay=stage.replay,
        )
        for stage, last in zip(recipe.stages, recipe.ends(settings.learner.steps), strict=True)
    )
    return Admission(
        sync_every=settings.sync.every, groups_per_step=settings.learner.groups_per_step, stages=stages
    )
