"""Steps that damage what the model is shown, and steps that choose among damaged inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.decoding import Ability
from pipelines.perturbations.base import DamageRequest, Perturbation, RegionSelector
from pipelines.perturbations.prompts import VisualDrop, with_act, without_media
from pipelines.perturbations.replace import colour_layout
from pipelines.perturbations.similarity import Similarity, least_similar
from pipelines.rollout import Draft, Drop, Step, Tools, derived_seed
from pipelines.types import Media, MediaKind, Prompt


@dataclass(frozen=True)
class Damage(Step):
    """Adds a prompt with damaged media under a name.

    `of` names the chosen response from which a selector takes its regions, so a step with a selector follows
    choosing. `optional`: a prompt without media, or one that the damage left as it was, goes on without the
    damaged prompt instead of being dropped; for damage that is only watched. `kinds`: damage media of these
    kinds alone, so that a video and its sound can be damaged apart; None: all.
    """

    name: str
    perturbation: Perturbation
    selector: RegionSelector | None = None
    of: str = "w"
    optional: bool = False
    under: str = "x"
    kinds: tuple[MediaKind, ...] | None = None

    @property
    def makes(self) -> frozenset[str]:
        return frozenset() if self.optional else frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        shown = dict.fromkeys(draft.at(self.under).media)
        digests = tuple(d for d in shown if self.kinds is None or draft.media[d].kind in self.kinds)
        if not digests:
            return self._without(draft, f"no_{'_or_'.join(self.kinds or ('media',))}_to_damage")
        if self.selector is not None and self.of not in draft.chosen:
            raise ValueError(f"Damage({self.name!r}) reads {self.of!r}, which no earlier step chose")
        prompt, media = await self._damaged(draft, tools, seed, digests)
        if prompt is None:
            return self._without(draft, "damage_changed_nothing")
        return draft.with_prompt(self.name, prompt, media)

    async def _damaged(
        self, draft: Draft, tools: Tools, seed: int, digests: tuple[str, ...]
    ) -> tuple[Prompt | None, dict[str, Media]]:
        """The prompt with those media damaged, None when all of them stayed as they were."""
        answer = draft.rollout(self.of).response.text if self.of in draft.chosen else ""
        asked = DamageRequest(
            perturbation=self.perturbation,
            selector=self.selector,
            answer=answer,
            gold=draft.prompt.gold,
            seed=0,
        )
        work = (
            tools.damage(draft.media[digest], replace(asked, seed=derived_seed(seed, i)))
            for i, digest in enumerate(digests)
        )
        damaged = await asyncio.gather(*work)
        swap = {old: new.digest for old, new in zip(digests, damaged, strict=True)}
        if all(old == new for old, new in swap.items()):
            return None, {}
        prompt = draft.at(self.under).with_media(swap, origin=self.name)
        return prompt, {media.digest: media for media in damaged}

    def _without(self, draft: Draft, reason: str) -> Draft:
        if self.optional:
            return draft
        raise Drop(reason)


@dataclass(frozen=True)
class DamageMany(Step):
    """Several damaged prompts, "<name>/0" and so on: every perturbation with every selector, in that order.

    What changes nothing, or equals an earlier one, is left out, so that there may be fewer than it `makes`;
    with nothing left the group is dropped.
    """

    name: str
    perturbations: tuple[Perturbation, ...]
    selectors: tuple[RegionSelector | None, ...] = (None,)
    of: str = "w"
    under: str = "x"

    @property
    def makes(self) -> frozenset[str]:
        count = len(self.perturbations) * len(self.selectors)
        return frozenset(f"{self.name}/{i}" for i in range(count))

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        before, count = set(draft.prompts), 0
        known = {draft.at(self.under).digest}
        for number, (perturbation, selector) in enumerate(
            (p, s) for p in self.perturbations for s in self.selectors
        ):
            name = f"{self.name}/{count}"
            step = Damage(name, perturbation, selector, self.of, optional=True, under=self.under)
            after = await step(draft, tools, derived_seed(seed, number))
            if name in after.prompts and after.prompts[name].digest not in known:
                known.add(after.prompts[name].digest)
                draft, count = after, count + 1
        if set(draft.prompts) == before:
            raise Drop("damage_changed_nothing" if draft.at(self.under).media else "no_media_to_damage")
        return draft


def numbered(draft: Draft, name: str) -> list[Prompt]:
    """The prompts "<name>/0", "<name>/1", ... in order."""
    prompts: list[Prompt] = []
    while f"{name}/{len(prompts)}" in draft.prompts:
        prompts.append(draft.prompts[f"{name}/{len(prompts)}"])
    return prompts


def _picture(draft: Draft, prompt: Prompt) -> Media:
    return draft.media[prompt.media[0]]


@dataclass(frozen=True)
class LeastSimilar(Step):
    """Of several damaged prompts the one whose picture fits an answer least (AdaViP; third-party note)."""

    name: str
    among: str
    of: str
    similarity: Similarity

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompts = numbered(draft, self.among)
        pictures = [_picture(draft, prompt) for prompt in prompts]
        text = draft.rollout(self.of).response.text
        which = await asyncio.to_thread(least_similar, pictures, text, draft.prompt.gold, self.similarity)
        return draft.with_prompt(self.name, prompts[which])


@dataclass(frozen=True)
class MostSimilar(Step):
    """Of several prompts the one whose first picture fits an answer best (PDS-DPO's choice of pictures)."""

    name: str
    among: str
    of: str
    similarity: Similarity

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompts = numbered(draft, self.among)
        text, gold = draft.rollout(self.of).response.text, draft.prompt.gold

        def fits() -> list[float]:
            return [self.similarity(_picture(draft, prompt), [text], gold)[0] for prompt in prompts]

        return draft.with_prompt(self.name, prompts[int(np.argmax(await asyncio.to_thread(fits)))])


@dataclass(frozen=True)
class Near(Step):
    """Keeps, and numbers anew, the damaged prompts whose first picture is close to the clean one.

    The "close" half of PaMi-VDPO's close-to-far choice (abstract and note read; the measure is inferred): the
    cosine of the embeddings is at least `least`.
    """

    among: str
    least: float = 0.8
    embed: Callable[[Media], NDArray[Any]] = colour_layout
    under: str = "x"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        clean = self._unit(_picture(draft, draft.at(self.under)))
        prompts = numbered(draft, self.among)
        near = [p for p in prompts if float(self._unit(_picture(draft, p)) @ clean) >= self.least]
        if not near:
            raise Drop("no_damage_close_enough")
        others = {name: p for name, p in draft.prompts.items() if not name.startswith(f"{self.among}/")}
        return replace(draft, prompts=others | {f"{self.among}/{i}": p for i, p in enumerate(near)})

    def _unit(self, media: Media) -> NDArray[np.float64]:
        vector = np.asarray(self.embed(media), dtype=np.float64).ravel()
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


@dataclass(frozen=True)
class LargestFall(Step):
    """Of several damaged prompts the one under which the policy finds an answer least likely.

    The "far" half of PaMi-VDPO's choice, made under the prompt (abstract and note read; that log pi(y | x)
    measures it is inferred). Since the clean log-probability is the same for all, its fall is the largest.
    """

    name: str
    among: str
    of: str

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"probe"})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompts, response = numbered(draft, self.among), draft.rollout(self.of).response
        probes = await asyncio.gather(*(tools.probe(p, draft.media, [response]) for p in prompts))
        logps = [sum(probe.logps) for (probe,) in probes]
        return draft.with_prompt(self.name, prompts[int(np.argmin(logps))])


@dataclass(frozen=True)
class Blind(Step):
    """The prompt without its media (BPO, code read; M3ID, third-party note)."""

    name: str = "blind"
    under: str = "x"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if not draft.at(self.under).media:
            raise Drop("no_media_to_damage")
        return draft.with_prompt(self.name, without_media(draft.at(self.under), origin=self.name))


@dataclass(frozen=True)
class Wordless(Step):
    """The prompt's media without its words (NaPO masks the text; third-party note)."""

    name: str = "wordless"
    under: str = "x"

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompt = draft.at(self.under)
        if not prompt.media:
            raise Drop("no_media_to_damage")
        messages = tuple(
            replace(message, parts=tuple(part for part in message.parts if part.digest))
            for message in prompt.messages
        )
        shown = tuple(message for message in messages if message.parts)
        return draft.with_prompt(self.name, replace(prompt, messages=shown, origin=self.name))


@dataclass(frozen=True)
class VisualDropped(Step):
    """The prompt with most visual embeddings hidden from attention inside the model (BDHS; paper read)."""

    name: str = "dropped"
    rho: float = 0.99
    under: str = "x"
    drop: VisualDrop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", VisualDrop(self.rho))

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"acts"})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if not draft.at(self.under).media:
            raise Drop("no_media_to_damage")
        prompt = replace(with_act(draft.at(self.under), self.drop.op(seed)), origin=self.name)
        return draft.with_prompt(self.name, prompt)
