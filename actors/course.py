"""Where a run is between its first and its last step. Pure; the ledger decides when it moves on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.accounts import END_OF_RUN, STAGE_OVER
from pipelines.admission import Admission, Stretch
from pipelines.loop import Phase
from pipelines.types import NEVER_STALE, Group, Shard


@dataclass
class Course:
    """Steps are 1-based; 0: none yet."""

    admission: Admission
    published: int = 0  # newest weight version that is out
    sealed: int = 0  # newest step that was handed out
    trained: int = 0  # newest step that is in the weights
    finished: bool = False  # the data is at its end
    stopped: bool = False
    drained: bool = False  # the step that was handed out is the last one
    failure: str | None = None

    @property
    def phase(self) -> Phase:
        if self.failure is not None:
            return "failed"
        if self.stopped:
            return "stopping"
        if self.sealed >= self.admission.max_steps:
            return "ended"
        return "finishing" if self.finished else "running"

    @property
    def open(self) -> bool:
        """Whether groups are still wanted."""
        return self.phase in ("running", "finishing")

    @property
    def stage(self) -> int:
        """The open stage: the one before is trained to its end, and the version that ended it is out."""
        stage = self.admission.stage_at(self.trained + 1)
        closed = stage and self.published < self.admission.due(self.admission.first(stage))
        return stage - 1 if closed else stage

    def stretch(self, step: int) -> Stretch:
        """The stage of a step."""
        return self.admission.stages[self.admission.stage_at(step)]

    def closed(self, stage: int) -> bool:
        """Whether the last step of a stage has been handed out."""
        return self.sealed >= self.admission.stages[stage].last

    def over(self, last: int) -> str:
        """Why what is left is dropped after the last step of a stage."""
        return END_OF_RUN if last == self.admission.max_steps else STAGE_OVER

    def step_of_next(self, before: int) -> int:
        """The step that the next group is for, when `before` groups are trained or under way."""
        step = before // self.admission.groups_per_step + 1
        return min(max(step, self.trained + 1), self.admission.stages[self.stage].last)

    def lag(self, version: int, step: int) -> int:
        """Published versions between a group's weights and those that step `step` starts from."""
        return max(max(self.published, self.admission.due(step)) - version, 0)

    def shard(self, groups: Sequence[Group], rank: int, world: int) -> Shard:
        """Rank `rank`'s part of the sealed step, which holds `groups`; it depends on nothing else."""
        newest = self.admission.due(self.sealed)
        groups = [replace(g, version=newest) if g.version == NEVER_STALE else g for g in groups]
        sizes = [sum(len(group.comparisons) for group in groups[r::world]) for r in range(world)]
        mine = tuple(groups[rank::world])
        return Shard(step=self.sealed, stop=False, groups=mine, largest=max(sizes), drained=self.drained)
