"""Steps that make an answer out of another one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.perturbations.similarity import Similarity, corruption_weights
from pipelines.perturbations.text import Edit
from pipelines.perturbations.tokens import TokenCorruption
from pipelines.programs.sampling import judged
from pipelines.rollout import Draft, Drop, Step, Tools, derived_seed
from pipelines.types import Response, Rollout


@dataclass(frozen=True)
class Edited(Step):
    """The answer as the run's editor rewrites it: "correct", "inject", "refine"...

    An edit that changes nothing drops the group.
    """

    name: str
    of: str
    kind: str
    judged: bool = False

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollout = draft.rollout(self.of)
        text = await tools.edit(rollout, self.kind, seed, draft.media)
        return await _with_text(draft, tools, self, rollout, text)


@dataclass(frozen=True)
class Rewrite(Step):
    """The answer as a rule rewrites it, `edit(text, gold, seed) -> text`."""

    name: str
    of: str
    edit: Edit
    judged: bool = False

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollout = draft.rollout(self.of)
        text = self.edit(rollout.response.text, draft.prompt.gold, seed)
        return await _with_text(draft, tools, self, rollout, text)


async def _with_text(
    draft: Draft, tools: Tools, step: Edited | Rewrite, rollout: Rollout, text: str
) -> Draft:
    if text.split() == rollout.response.text.split():
        raise Drop("edit_changed_nothing")
    response = await tools.encode(text, "edited")
    draft = draft.with_rollouts(step.name, (Rollout(prompt=rollout.prompt, response=response),))
    return await judged(draft, step.name, tools) if step.judged else draft


@dataclass(frozen=True)
class Graded(Step):
    """Several edits of one answer: the responses "<name>/<k>" in the order of `edits`, and the set `name`.

    Self-supervised degrees (SPO; abstract read) delete more and more of what matters. An edit may change
    nothing, so that the degree of the whole answer can be among them.
    """

    name: str
    of: str
    edits: tuple[Edit, ...]

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name, *(f"{self.name}/{k}" for k in range(len(self.edits)))})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollout = draft.rollout(self.of)
        for k, edit in enumerate(self.edits):
            text = edit(rollout.response.text, draft.prompt.gold, derived_seed(seed, k))
            response = await tools.encode(text, "edited")
            draft = draft.with_rollouts(
                f"{self.name}/{k}", (replace(rollout, response=response, behaviour=None),)
            )
        members = tuple(draft.chosen[f"{self.name}/{k}"] for k in range(len(self.edits)))
        return replace(draft, sets={**draft.sets, self.name: members})


@dataclass(frozen=True)
class Corrupt(Step):
    """Answers with some of their tokens replaced where they are fed, and not scored there.

    TARS (code read): positions are drawn with probability proportional to 1 - similarity(token, picture), the
    `share` of an answer's tokens; its end is never drawn. `names`: new name -> name of the answer.
    `similarity` None draws uniformly. `vocabulary`: the ids that replace; by default those of the group's own
    answers, so that no special token can appear (the released code draws from the whole vocabulary).
    """

    names: Mapping[str, str]
    share: float = 0.05
    similarity: Similarity | None = None
    vocabulary: tuple[int, ...] = ()

    @property
    def makes(self) -> frozenset[str]:
        return frozenset(self.names)

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        vocabulary = self.vocabulary or tuple(sorted({t for r in draft.rollouts for t in _said(r.response)}))
        corruption = TokenCorruption(vocabulary, self.share)
        for new, old in self.names.items():
            rollout = draft.rollout(old)
            weights = await self._weights(draft, rollout.response, tools)
            tokens, targets = corruption(rollout.response.tokens, weights, derived_seed(seed, new))
            response = replace(
                rollout.response, tokens=tuple(tokens), targets=tuple(targets), origin="edited"
            )
            draft = draft.with_rollouts(new, (Rollout(prompt=rollout.prompt, response=response),))
        return draft

    async def _weights(self, draft: Draft, response: Response, tools: Tools) -> tuple[float, ...]:
        said = _said(response)
        end = (0.0,) * (len(response.tokens) - len(said))
        if self.similarity is None:
            return (1.0,) * len(said) + end
        if not draft.prompt.media:
            raise Drop("no_media_to_damage")
        pieces = await asyncio.gather(*(tools.decode([token]) for token in said))
        media = draft.media[draft.prompt.media[0]]
        weigh = (corruption_weights, media, pieces, draft.prompt.gold, self.similarity)
        return (*await asyncio.to_thread(*weigh), *end)


def _said(response: Response) -> tuple[int, ...]:
    """The tokens without the end of sequence."""
    return response.tokens[:-1] if response.finished else response.tokens
