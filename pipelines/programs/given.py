"""Steps that bring in answers which the data row holds."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.programs.sampling import judged
from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Rollout


@dataclass(frozen=True)
class Recorded(Step):
    """The text of a column of the row as an answer; a row without it drops the group as "no_<column>"."""

    name: str
    column: str
    judged: bool = False

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        text = draft.prompt.gold.get(self.column)
        if not isinstance(text, str) or not text:
            raise Drop(f"no_{self.column}")
        response = await tools.encode(text, "gold")
        draft = draft.with_rollouts(self.name, (Rollout(prompt=draft.prompt, response=response),))
        return await judged(draft, self.name, tools) if self.judged else draft


@dataclass(frozen=True)
class Gold(Step):
    """The column `answer`."""

    name: str = "g"
    judged: bool = False

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        return await Recorded(self.name, "answer", self.judged)(draft, tools, seed)


@dataclass(frozen=True)
class Offline(Step):
    """A recorded pair: the columns `chosen` and `rejected`."""

    winner: str = "w"
    loser: str = "l"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.winner, self.loser})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        pair = Recorded(self.winner, "chosen") >> Recorded(self.loser, "rejected")
        draft = await pair(draft, tools, seed)
        if draft.rollout(self.winner).response.tokens == draft.rollout(self.loser).response.tokens:
            raise Drop("same_response")
        return draft
