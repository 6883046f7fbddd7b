"""One picture among others, and answers that looked at the wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipelines.decoding import Ability
from pipelines.perturbations.compose import Composed, collage, picture_in_picture, sequence, show
from pipelines.perturbations.replace import Bank
from pipelines.rollout import Draft, Drop, Step, Tools, derived_seed
from pipelines.types import Media

Layout = Literal["sequence", "collage", "picture_in_picture"]


@dataclass(frozen=True)
class Compose(Step):
    """The prompt with its picture among 1 to `most` - 1 others, in a random layout.

    MIA-DPO, arXiv 2410.17637 (code read). `prefix` says which picture is meant: {number} counts from 1. The
    facts "pictures" and "target" of the draft say how many media the prompt shows and which one is meant; a
    collage and a picture in a picture are one media.
    """

    name: str
    bank: Bank
    layouts: tuple[Layout, ...] = ("sequence", "collage", "picture_in_picture")
    most: int = 5
    prefix: str = "picture {number} : "

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if len(draft.prompt.media) != 1:
            raise Drop("not_one_picture")
        target = draft.media[draft.prompt.media[0]]
        rng = np.random.default_rng(seed)
        layout = self.layouts[int(rng.integers(len(self.layouts)))]
        bank = await asyncio.to_thread(self.bank)
        others = [media for media in bank if media.digest != target.digest]
        wanted = 1 if layout == "picture_in_picture" else int(rng.integers(1, self.most))
        if len(others) < wanted:
            raise ValueError(f"Compose: the bank holds {len(others)} other pictures, {wanted} are wanted")
        picked = [others[int(i)] for i in rng.choice(len(others), wanted, replace=False)]
        composed = _arranged(layout, target, picked, derived_seed(seed, layout))
        prompt = show(
            draft.prompt, composed, self.prefix if layout != "picture_in_picture" else "", self.name
        )
        target_at = composed.index if layout == "sequence" else 0
        facts = {**draft.facts, "pictures": float(len(composed.media)), "target": float(target_at)}
        media = {item.digest: item for item in composed.media}
        return replace(draft.with_prompt(self.name, prompt, media), facts=facts)


def _arranged(layout: Layout, target: Media, others: Sequence[Media], seed: int) -> Composed:
    if layout == "sequence":
        return sequence(target, others, seed)
    return (
        collage(target, others, seed) if layout == "collage" else picture_in_picture(target, others[0], seed)
    )


@dataclass(frozen=True)
class Distracted(Step):
    """The first answer of a set whose attention on the picture that is meant is low.

    MIA-DPO (code read): the share of the attention on pictures is at most `most`[k - 2] where k are shown. A
    prompt that shows one media has no such share, and its first answer is taken. An answer with the tokens of
    `unlike` never is. Drops "not_distracted" when there is none.
    """

    name: str
    of: str
    under: str
    unlike: str = "w"
    most: tuple[float, ...] = (0.8, 0.7, 0.6, 0.6)

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"probe", "attention"})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        good = draft.rollout(self.unlike).response.tokens
        members = [i for i in draft.members(self.of) if draft.rollouts[i].response.tokens != good]
        shown, target = int(draft.facts["pictures"]), int(draft.facts["target"])
        if shown > 1 and members:
            responses = [draft.rollouts[i].response for i in members]
            probes = await tools.probe(draft.at(self.under), draft.media, responses, attention=True)
            most = self.most[min(shown - 2, len(self.most) - 1)]
            shares = [probe.attention[target] / max(sum(probe.attention), 1e-12) for probe in probes]
            members = [i for i, share in zip(members, shares, strict=True) if share <= most]
        if not members:
            raise Drop("not_distracted")
        return replace(draft, chosen={**draft.chosen, self.name: members[0]})
