"""What a judge or a reward model is shown: the answer's prompt with facts, a context or examples added."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.rewards.base import AnyReward, judge_group
from pipelines.types import MediaTable, Message, Part, Prompt, Rollout, Score

Rewrite = Callable[[Prompt], Prompt]


def said(text: str, role: str = "user") -> Message:
    return Message(role=role, parts=(Part(kind="text", text=text),))


@dataclass(frozen=True)
class Augmented:
    """A reward that is shown another prompt than the one the answer was sampled under.

    The response stays as it is. A rewrite that fails for a prompt makes that group's scores missing.
    """

    reward: AnyReward
    rewrite: Rewrite

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        shown = [replace(rollout, prompt=self.rewrite(rollout.prompt)) for rollout in rollouts]
        return await judge_group(self.reward, shown, media)


@dataclass(frozen=True)
class WithFacts:
    """Appends gold facts to the last user message: Factually Augmented RLHF.

    LLaVA-RLHF (arXiv 2309.14525; released code read): the reward model reads gold captions or options that
    the policy never sees. `keys`: gold columns; a list gives one line per item. Raises ValueError for a
    prompt that has none of them, since its facts would be silently absent.
    """

    keys: tuple[str, ...] = ("captions",)
    lead: str = "Facts about the image:"

    def __call__(self, prompt: Prompt) -> Prompt:
        lines: list[str] = []
        for key in self.keys:
            value = prompt.gold.get(key, ())
            lines += [str(value)] if isinstance(value, str) else [str(item) for item in value]
        if not lines:
            raise ValueError(f"prompt {prompt.id!r}: none of its gold columns {self.keys} holds a fact")
        return _append(prompt, "\n".join([f"\n{self.lead}", *lines]))


@dataclass(frozen=True)
class WithContext:
    """A system message in front: the criterion under which answers are judged.

    Context-aware preference modelling (arXiv 2407.14916; model card read): p(w > l | x, z). The empty context
    is the empty system prompt of WorldPM (arXiv 2505.10527; note read).
    """

    context: str = ""

    def __call__(self, prompt: Prompt) -> Prompt:
        rest = tuple(m for m in prompt.messages if m.role != "system")
        return replace(prompt, messages=(said(self.context, "system"), *rest))


@dataclass(frozen=True)
class WithShots:
    """A user's own labelled comparisons in front: FSPO (arXiv 2502.19312; released code read), 4 shots.

    The gold column `key` lists {"question", "preferred", "dispreferred"}; the wording is ours.
    Raises ValueError for a prompt with fewer shots than `count`.
    """

    count: int = 4
    key: str = "shots"

    def __call__(self, prompt: Prompt) -> Prompt:
        shots: Sequence[Mapping[str, str]] = prompt.gold.get(self.key, ())
        if len(shots) < self.count:
            raise ValueError(f"prompt {prompt.id!r}: {len(shots)} shots, expected at least {self.count}")
        lines = [
            f"Question: {s['question']}\nPreferred: {s['preferred']}\nDispreferred: {s['dispreferred']}"
            for s in shots[: self.count]
        ]
        return WithContext("\n\n".join(["This user's earlier choices:", *lines]))(prompt)


@dataclass(frozen=True)
class WithDirection:
    """Tells the policy which trade-off is wanted: DPA's system prompt (arXiv 2402.18571; README read).

    v = (cos theta, sin theta) as whole numbers out of 100; the wording is ours.
    """

    degrees: float
    first: str = "helpfulness"
    second: str = "verbosity"

    def __call__(self, prompt: Prompt) -> Prompt:
        angle = math.radians(self.degrees)
        v1, v2 = round(100 * math.cos(angle)), round(100 * math.sin(angle))
        rule = f"Answer so as to maximise {v1} * {self.first} + {v2} * {self.second}."
        return WithContext(rule)(prompt)


def _append(prompt: Prompt, text: str) -> Prompt:
    """Text at the end of the last user message."""
    users = [i for i, message in enumerate(prompt.messages) if message.role == "user"]
    if not users:
        raise ValueError(f"prompt {prompt.id!r} has no user message to add to")
    messages = list(prompt.messages)
    last = messages[users[-1]]
    messages[users[-1]] = replace(last, parts=(*last.parts, Part(kind="text", text=text)))
    return replace(prompt, messages=tuple(messages))
