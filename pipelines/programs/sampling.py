"""Steps that sample answers, and steps that judge and gather what was sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.decoding import Ability, Decoder
from pipelines.rewards.base import AnyReward, judge_group
from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Score


@dataclass(frozen=True)
class Sample(Step):
    """n responses to a prompt, judged unless `judged` is False; the set `name`.

    `under`: the prompt that they are sampled under; what they are scored under is decided by `compare`.
    """

    n: int = 8
    name: str = "y"
    under: str = "x"
    decoder: Decoder = field(default_factory=Decoder)
    judged: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Sample(n=...): expected at least 1 response, got {self.n}")

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    @property
    def needs(self) -> frozenset[Ability]:
        return self.decoder.needs

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        prompt = draft.at(self.under)
        rollouts = tuple(await tools.sample(prompt, draft.media, self.n, seed, decoder=self.decoder))
        draft = draft.with_rollouts(self.name, rollouts)
        return await judged(draft, self.name, tools) if self.judged else draft


@dataclass(frozen=True)
class Foreign(Step):
    """An answer to another prompt, as KTO (arXiv 2402.01306) takes it for its KL estimate."""

    name: str

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        rollout = await tools.foreign()
        if rollout is None:
            raise Drop("no_foreign_answer")
        return draft.with_rollouts(self.name, (rollout,))


@dataclass(frozen=True)
class Pool(Step):
    """Several sets or responses as one set, each rollout once."""

    name: str
    of: tuple[str, ...]

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({self.name})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        members = tuple(dict.fromkeys(index for name in self.of for index in draft.members(name)))
        return replace(draft, sets={**draft.sets, self.name: members})


@dataclass(frozen=True)
class Judged(Step):
    """Scores a set or a response that has no scores yet, with the run's reward."""

    of: str = "y"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        return await judged(draft, self.of, tools)


@dataclass(frozen=True)
class JudgedBy(Step):
    """Scores a set with a rule that is part of the method, plus `run_weight` times the run's reward.

    Where either score is missing, the sum is. The run's value is kept as the part "reward".
    """

    of: str
    reward: AnyReward
    run_weight: float = 0.0

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        members = draft.members(self.of)
        own = await judge_group(self.reward, [draft.rollouts[i] for i in members], draft.media)
        if not self.run_weight:
            return rescored(draft, dict(zip(members, own, strict=True)))
        draft = await judged(draft, self.of, tools)
        whole = {
            i: _sum(score, draft.scores[i], self.run_weight) for i, score in zip(members, own, strict=True)
        }
        return rescored(draft, whole)


def _sum(own: Score, run: Score | None, weight: float) -> Score:
    if own.value is None or run is None:
        return own
    if run.value is None:
        return run
    return replace(own, value=own.value + weight * run.value, parts={**own.parts, "reward": run.value})


async def judged(draft: Draft, name: str, tools: Tools) -> Draft:
    """The draft with scores for all rollouts of a name."""
    members = draft.members(name)
    rollouts = [draft.rollouts[i] for i in members]
    scores = tuple(await tools.score(rollouts, draft.media))
    if len(scores) != len(rollouts):
        raise ValueError(f"the scorer gave {len(scores)} scores for {len(rollouts)} responses")
    return rescored(draft, dict(zip(members, scores, strict=True)))


def rescored(draft: Draft, scores: Mapping[int, Score]) -> Draft:
    """The draft with other scores at some rollouts."""
    return replace(draft, scores=tuple(scores.get(i, score) for i, score in enumerate(draft.scores)))
