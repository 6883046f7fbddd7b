"""Steps that ask what the policy makes of an answer that it is made to read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.decoding import Ability
from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Rollout


@dataclass(frozen=True)
class TopTokens(Step):
    """An answer as it is fed, scored on the policy's most likely token at each position under `under`.

    POVID's online negative (code read): the argmax under a noised picture, teacher-forced on the chosen
    answer. There the reference scores its own argmax; here policy and reference score the policy's. Drops
    "same_response" when the argmax is the answer itself.
    """

    name: str
    of: str
    under: str

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"probe"})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollout = draft.rollout(self.of)
        (probe,) = await tools.probe(draft.at(self.under), draft.media, [rollout.response])
        if tuple(probe.top) == rollout.response.tokens:
            raise Drop("same_response")
        text = await tools.decode(probe.top)
        response = replace(rollout.response, targets=tuple(probe.top), text=text, origin="edited")
        return draft.with_rollouts(self.name, (Rollout(prompt=rollout.prompt, response=response),))
