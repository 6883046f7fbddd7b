"""Steps that let the policy finish what somebody else began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.decoding import Ability, Decoder
from pipelines.perturbations.tokens import sentence_cuts
from pipelines.programs.sampling import judged
from pipelines.rewards.similarity import bleu, words
from pipelines.rollout import Draft, Drop, Step, Tools, derived_seed
from pipelines.types import Response, Rollout

_OPPOSITE = {"yes": "no", "no": "yes"}
_PREFIX: frozenset[Ability] = frozenset({"prefix"})


@dataclass(frozen=True)
class Continue(Step):
    """A beginning of an answer, and how the policy goes on from it under another prompt.

    DropoutNTP of InternVL's MPO (code read) cuts the answer and continues without the picture. The share of
    tokens that is kept is uniform in [low, high]; at least one token, the end apart, is always left to the
    policy. Raises ValueError unless 0 <= low <= high <= 1.
    """

    name: str
    of: str
    under: str = "x"
    low: float = 0.0
    high: float = 1.0
    decoder: Decoder = field(default_factory=Decoder)
    judged: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"Continue: expected 0 <= low <= high <= 1, got {self.low} and {self.high}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return self.decoder.needs.union(_PREFIX)

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        answer = draft.rollout(self.of).response
        said = len(answer.tokens) - answer.finished
        share = np.random.default_rng(seed).uniform(self.low, self.high)
        prefix = answer.tokens[: max(0, min(int(share * said), said - 1))]
        asked = (draft.at(self.under), draft.media, 1, seed)
        rollouts = await tools.sample(*asked, decoder=self.decoder, prefix=prefix)
        if rollouts[0].response.tokens == answer.tokens:
            raise Drop("same_response")
        draft = draft.with_rollouts(self.name, rollouts)
        return await judged(draft, self.name, tools) if self.judged else draft


@dataclass(frozen=True)
class SentenceGuided(Step):
    """An answer whose every sentence was cut at a random point and finished by the policy under `under`.

    BDHS, "Understanding Alignment in Multimodal LLMs" (paper read): each completion is conditioned on the
    *true* sentences before it; yes and no are flipped with probability `flip`; while the result is more than
    `similar` like the answer it is drawn anew, and after `tries` it is sampled without guidance. The paper
    compares sentence embeddings by cosine; here `measure` compares words. Drops "same_response" when even the
    unguided answer says the same.
    """

    name: str
    of: str
    under: str
    similar: float = 0.97
    tries: int = 5
    flip: float = 0.5
    measure: Callable[[str, str], float] = bleu

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return _PREFIX

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        answer = draft.rollout(self.of).response
        prompt = draft.at(self.under)
        opposite = _OPPOSITE.get(" ".join(words(answer.text)))
        if opposite is not None and np.random.default_rng(seed).random() < self.flip:
            response = await tools.encode(opposite, "edited")
            return draft.with_rollouts(self.name, (Rollout(prompt=prompt, response=response),))
        for attempt in range(self.tries):
            response = await self._guided(draft, answer, tools, derived_seed(seed, attempt))
            if self.measure(response.text, answer.text) <= self.similar:
                return draft.with_rollouts(self.name, (Rollout(prompt=prompt, response=response),))
        (rollout,) = await tools.sample(prompt, draft.media, 1, derived_seed(seed, "unguided"))
        if words(rollout.response.text) == words(answer.text):
            raise Drop("same_response")
        return draft.with_rollouts(self.name, (rollout,))

    async def _guided(self, draft: Draft, answer: Response, tools: Tools, seed: int) -> Response:
        said = answer.tokens[: len(answer.tokens) - answer.finished]
        cuts = sentence_cuts(said, await _sentence_ends(said, tools), seed)
        tokens: list[int] = []
        for number, (start, cut, _) in enumerate(cuts):
            asked = (draft.at(self.under), draft.media, 1, derived_seed(seed, number))
            (rollout,) = await tools.sample(*asked, prefix=answer.tokens[:cut])
            made = rollout.response
            new = made.tokens[cut : len(made.tokens) - made.finished]
            tokens += [*answer.tokens[start:cut], *await _first_sentence(new, tools)]
        tokens += answer.tokens[len(said) :]
        return Response(
            tokens=tuple(tokens),
            text=await tools.decode(tokens),
            origin="stitched",
            finished=answer.finished,
        )


async def _sentence_ends(tokens: Sequence[int], tools: Tools) -> frozenset[int]:
    known = sorted(set(tokens))
    texts = await asyncio.gather(*(tools.decode([token]) for token in known))
    ends = (text.strip().endswith((".", "!", "?")) for text in texts)
    return frozenset(token for token, end in zip(known, ends, strict=True) if end)


async def _first_sentence(tokens: Sequence[int], tools: Tools) -> Sequence[int]:
    ends = await _sentence_ends(tokens, tools)
    first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]
