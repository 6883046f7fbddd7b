"""Steps that ask the model something else: about answers, under constraints, with a hint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from pipelines.perturbations.constraints import FAMILIES, Constraint, Family, draw
from pipelines.perturbations.prompts import add_text
from pipelines.programs.sampling import Sample
from pipelines.rollout import Draft, Drop, Pipe, Step, Tools, derived_seed

EXPLAIN = "{w} is a better answer than {l} . why ?"


@dataclass(frozen=True)
class Ask(Step):
    """The prompt with a text at the end of its last user message.

    {name} in the template is the text of that response where `of` lists it, else that column of the row; a
    row without the column drops the group as "no_<column>".
    """

    name: str
    template: str
    of: tuple[str, ...] = ()
    under: str = "x"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        values = {name: draft.rollout(name).response.text for name in self.of}
        gold = draft.prompt.gold
        for _, field, _, _ in Formatter().parse(self.template):
            if field and field not in values:
                if field not in gold:
                    raise Drop(f"no_{field}")
                values[field] = str(gold[field])
        text = self.template.format(**values)
        return draft.with_prompt(self.name, add_text(draft.at(self.under), text, origin=self.name))


def explain(name: str = "e", under: str = "xwl", template: str = EXPLAIN) -> Pipe:
    """A rationale why w is better than l, sampled from the policy (RDPO; code read): cell "e@xwl"."""
    return Ask(under, template, of=("w", "l")) >> Sample(1, name, under=under, judged=False)


@dataclass(frozen=True)
class Constrained(Step):
    """Two prompts for one answer: with an instruction that it satisfies, and with one that it violates.

    MAPL's response-conditioned prompt pair (third-party note). Both instructions are of one family where that
    family has both.
    """

    of: str = "y"
    satisfied: str = "xw"
    violated: str = "xl"
    base: str = "x"
    vocabulary: tuple[str, ...] = ()

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.satisfied, self.violated})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        text = draft.rollout(self.of).response.text
        kept = draw(text, True, seed, vocabulary=self.vocabulary)
        if kept is None:
            raise Drop("no_constraint")
        broken = draw(text, False, seed, (type(kept),), self.vocabulary)
        broken = broken or draw(text, False, seed, vocabulary=self.vocabulary)
        if broken is None:
            raise Drop("no_constraint")
        for name, constraint in ((self.satisfied, kept), (self.violated, broken)):
            prompt = add_text(draft.at(self.base), constraint.instruction(), origin=name)
            draft = draft.with_prompt(name, prompt)
        return draft


@dataclass(frozen=True)
class Widened(Step):
    """A prompt with an instruction that the winner satisfies and the loser violates.

    MAPL's inter-prompt pair (third-party note; which instructions widen the gap is inferred). Drops
    "no_constraint" when none of `tries` draws tells the two apart.
    """

    name: str = "xt"
    winner: str = "w"
    loser: str = "l"
    base: str = "x"
    vocabulary: tuple[str, ...] = ()
    tries: int = 32

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        good, bad = (draft.rollout(name).response.text for name in (self.winner, self.loser))
        found = self._between(good, bad, FAMILIES, seed)
        if found is None:
            raise Drop("no_constraint")
        prompt = add_text(draft.at(self.base), found.instruction(), origin=self.name)
        return draft.with_prompt(self.name, prompt)

    def _between(self, good: str, bad: str, families: Sequence[Family], seed: int) -> Constraint | None:
        draws = (
            draw(good, True, derived_seed(seed, i), families, self.vocabulary) for i in range(self.tries)
        )
        return next((c for c in draws if c is not None and not c(bad)), None)
