"""A step that runs another one for each of several pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.decoding import Ability
from pipelines.rollout import Draft, Step, Tools, derived_seed


@dataclass(frozen=True)
class ForEach(Step):
    """Runs `step` once per i with every name of `names` bound to the i-th member of its set.

    A prompt "m" that the step makes becomes "m/<i>"; read by `comparing.several.Each`. One that drops, drops
    the group.
    """

    names: tuple[str, ...]
    step: Step

    @property
    def makes(self) -> frozenset[str]:
        return self.step.makes

    @property
    def needs(self) -> frozenset[Ability]:
        return self.step.needs

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        for i in range(len(draft.members(self.names[0]))):
            chosen = {name: draft.members(name)[i] for name in self.names}
            bound = replace(draft, chosen={**draft.chosen, **chosen})
            after = await self.step(bound, tools, derived_seed(seed, i))
            made = {f"{n}/{i}": p for n, p in after.prompts.items() if n not in draft.prompts}
            draft = replace(draft, prompts={**draft.prompts, **made}, media=after.media)
        return draft
