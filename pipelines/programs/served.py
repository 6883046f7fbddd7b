"""Recorded feedback beside what the policy samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelines.programs.given import Offline
from pipelines.programs.mixing import Either, When
from pipelines.recipe import Recipe, Stage
from pipelines.rollout import Draft, Drop, Pipe, Step, Tools
from pipelines.settings import Settings
from pipelines.types import Rollout


@dataclass(frozen=True)
class Labelled(Step):
    """Recorded answers without a pair: the column `chosen` is good, `rejected` bad; one of them may be
    missing, and its set is then empty."""

    good: str = "good"
    bad: str = "bad"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.good, self.bad})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        texts = {self.good: draft.prompt.gold.get("chosen"), self.bad: draft.prompt.gold.get("rejected")}
        if not any(texts.values()):
            raise Drop("no_recorded_answer")
        for name, text in texts.items():
            said = [await tools.encode(text, "gold")] if text else []
            draft = draft.with_rollouts(name, [Rollout(prompt=draft.prompt, response=r) for r in said])
        return draft


FIX = "set it to 0, so that the policy answers every prompt anew"
# What a program makes of a prompt's answers -> the same from a row, and the rows (`sides`) that have it.
FROM_ROWS: tuple[tuple[frozenset[str], Step, tuple[str, ...]], ...] = (
    (frozenset({"w", "l"}), Offline(), ("pair",)),
    (frozenset({"good", "bad"}), Labelled(), ("pair", "good", "bad")),
)


def with_served(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe that also learns from served feedback, where `data.source` is serving://.

    In a share `data.recorded_share` of the groups whose row has usable feedback, the recorded answers take
    the place of the sampled ones; all that follows (damage, comparing, the objective) is as it was. A recipe
    that reads recorded pairs by itself stays as it is. Raises ValueError where the recipe cannot do so.
    """
    if settings.data.served is None:
        return recipe
    return replace(recipe, stages=tuple(_with_served(recipe.name, s, settings) for s in recipe.stages))


def _with_served(name: str, stage: Stage, settings: Settings) -> Stage:
    steps = stage.rollout.steps if isinstance(stage.rollout, Pipe) else (stage.rollout,)
    if any(isinstance(step, Offline) for step in steps):
        return stage
    share = settings.data.recorded_share
    if share and (problem := next(_problems(stage), None)):
        raise ValueError(f"data.recorded_share: {name} {problem}; {FIX}")
    for wanted, given, sides in FROM_ROWS:
        for count in range(1, len(steps) + 1):
            if Pipe(steps[:count]).makes >= wanted:
                sampled = Pipe(steps[:count])
                mixed = When("sides", sides, Either(share, given, sampled), sampled)
                return replace(stage, rollout=Pipe((mixed, *steps[count:])))
    if share:
        raise ValueError(
            f"data.recorded_share: {name} learns neither from pairs (w, l) nor from labels (good, bad), so "
            f"it has no place for recorded feedback; {FIX}"
        )
    return stage


def _problems(stage: Stage) -> Iterator[str]:
    """Why answers that no version of the run sampled must not enter."""
    for _, term in stage.objective.terms:
        if "behaviour" in term.views:
            yield f"reads the log-probabilities of who sampled ({term!r}), which recorded answers do not have"
    if stage.objective.max_lag is not None:
        yield "learns from fresh samples alone"
