"""Labelled examples of a user in front of the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Message, Part


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
        shots: Sequence[Any] = draft.prompt.gold.get(self.column) or []
        if len(shots) < self.count:
            raise Drop(f"no_{self.column}")
        try:
            shown = "\n".join(
                f"{shot['question']}\nThis user prefers: {shot['chosen']}\nto: {shot['rejected']}"
                for shot in shots[: self.count]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"column {self.column!r} of row {draft.prompt.id!r}: expected a list of "
                "{'question', 'chosen', 'rejected'}, got " + repr(shots[0])
            ) from error
        examples = Message(role="system", parts=(Part(kind="text", text=shown),))
        prompt = replace(draft.prompt, messages=(examples, *draft.prompt.messages), origin=self.name)
        return draft.with_prompt(self.name, prompt)
