"""The order in which an attempt goes through the prompts of a stage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.guards import cancel
from actors.orders import kept
from actors.partners import Partners
from actors.plan import Plan
from actors.producer import serving
from actors.remote import reach
from pipelines.admission import admission_of
from pipelines.loop import Parcel, RoleFailed
from pipelines.rollout import derived_seed
from pipelines.schedules import Order

if TYPE_CHECKING:
    from actors.attempt import Desk

SURVEY_AT_ONCE = 64  # prompts surveyed at one time
SURVEY_TRIES = 3


class Ordering:
    """Of one attempt. `ledger` is what scorers are told, `prompts` the stream as `reach` gives it."""

    def __init__(self, plan: Plan, desk: Desk, ledger: Any, prompts: Any) -> None:
        self._plan, self._desk, self._fleet = plan, desk, desk.fleet
        self._ledger, self._prompts = ledger, prompts
        self._timeout_s = 4.0 * plan.settings.rollout.engine.timeout_s

    async def enter(self, stage: int, cursor: int) -> None:
        """Put the stage's prompts, from `cursor` on, in the order of the recipe."""
        order = self._plan.recipe.stages[stage].order
        if order.key is not None:

            async def survey() -> list[int]:
                await self._prompts.seek(cursor)
                async with self._desk.stage("survey"):
                    return order(await self._survey(stage, order))

            await self._prompts.reorder(*await kept(self._plan.run_dir / "order.json", stage, cursor, survey))

    async def _survey(self, stage: int, order: Order) -> list[float]:
        """Difficulty of as many prompts as the stage trains on."""
        admission = admission_of(self._plan.settings, self._plan.recipe)
        steps = admission.stages[stage].last - admission.first(stage) + 1
        lanes = asyncio.Semaphore(SURVEY_AT_ONCE)
        prompts = await self._prompts.next(steps * admission.groups_per_step)
        asked = [
            asyncio.create_task(self._difficulty(order, lanes, index, item[3]))
            for index, item in enumerate(prompts)
        ]
        try:
            difficulty = await asyncio.gather(*asked)
        finally:
            await cancel(asked)  # one that fails leaves the others at work
        rounded = [round(value, 4) for value in difficulty]
        self._desk.events.write("survey", stage=stage, key=order.key, difficulty=rounded)
        return difficulty

    async def _difficulty(self, order: Order, lanes: asyncio.Semaphore, index: int, parcel: Parcel) -> float:
        """Of one prompt; other members are tried where one fails."""
        seed, failures = self._plan.settings.seed + index, list[str]()
        retry = True
        async with lanes:
            for tried in range(SURVEY_TRIES):
                try:
                    return await self._ask(parcel, order, derived_seed(seed, tried), index + tried)
                except RoleFailed as error:
                    failures.append(str(error))
                    retry = error.retry
        raise RoleFailed("survey_failed", "generator", f"prompt {index}: {' | '.join(failures)}", retry)

    async def _ask(self, parcel: Parcel, order: Order, seed: int, turn: int) -> float:
        """By the members whose turn it is; while a role has none, one is waited for."""
        perturbers = await serving(self._fleet, "perturber", self._timeout_s)
        generators = await serving(self._fleet, "generator", self._timeout_s)
        scorer = _pick(await serving(self._fleet, "scorer", self._timeout_s), turn)
        partners = Partners(
            generator=_pick(generators, turn), perturbers=tuple(perturbers.values()), ledger=self._ledger
        )
        return await reach(scorer, "scorer", self._timeout_s).survey(parcel, order, seed, partners)


def _pick(members: Mapping[int, Any], turn: int) -> Any:
    return list(members.values())[turn % len(members)]
