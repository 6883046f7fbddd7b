"""Labelled examples of a user in front of the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Message, Part

FORM = "{'question', 'chosen', 'rejected'}"


@dataclass(frozen=True)
class Shots(Step):
    """A prompt `name`: the clean one behind `count` examples of the row's `column`.

    Each example is {"question", "chosen", "rejected"}. Drops "no_<column>" when the row has too few; raises
    ValueError for an example that is not written so.
    """

    name: str
    column: str = "shots"
    count: int = 4

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        shots: Any = draft.prompt.gold.get(self.column) or []
        where = f"column {self.column!r} of row {draft.prompt.id!r}"
        if not isinstance(shots, list | tuple):
            raise ValueError(f"{where}: expected a list of {FORM}, got {shots!r}")
        examples = cast(Sequence[Any], shots)[: self.count]
        if len(examples) < self.count:
            raise Drop(f"no_{self.column}")
        shown = "\n".join(_said(example, where) for example in examples)
        told = Message(role="system", parts=(Part(kind="text", text=shown),))
        prompt = replace(draft.prompt, messages=(told, *draft.prompt.messages), origin=self.name)
        return draft.with_prompt(self.name, prompt)


def _said(shot: Any, where: str) -> str:
    try:
        return f"{shot['question']}\nThis user prefers: {shot['chosen']}\nto: {shot['rejected']}"
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: expected a list of {FORM}, got {shot!r}") from error
