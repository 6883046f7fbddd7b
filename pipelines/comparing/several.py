"""Parts of `compare` with many edges, and several comparisons of one group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.comparisons import Compare, place
from pipelines.rewards.gates import Gate
from pipelines.rollout import Draft
from pipelines.types import Comparison, Preference, Score


@dataclass(frozen=True)
class Each(Compare):
    """One comparison per i: `inner` with every name of `names` bound to the i-th member of its set.

    A prompt of `prompts`, say "m", is bound to "m/<i>". The sets have one length.
    """

    names: tuple[str, ...]
    inner: Compare
    prompts: tuple[str, ...] = ()

    @property
    def emits(self) -> frozenset[str]:
        return self.inner.emits

    @property
    def roles(self) -> frozenset[str]:
        return self.inner.roles

    @property
    def spans(self) -> frozenset[str]:
        return self.inner.spans

    @property
    def takes(self) -> frozenset[str]:
        return self.inner.takes

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]:
        count = len(draft.members(self.names[0]))
        made = [part for i in range(count) for part in self.inner(group, bound(draft, self, i))]
        return tuple(replace(part, id=f"{group}/{number}") for number, part in enumerate(made))


def bound(draft: Draft, each: Each, index: int) -> Draft:
    """The draft in which names stand for the members of number `index`."""
    chosen = {name: draft.members(name)[index] for name in each.names}
    sets = {name: members for name, members in draft.sets.items() if name not in each.names}
    prompts = {name: draft.at(f"{name}/{index}") for name in each.prompts}
    return replace(draft, chosen={**draft.chosen, **chosen}, sets=sets, prompts={**draft.prompts, **prompts})


@dataclass(frozen=True)
class PerStep(Compare):
    """One comparison per step of an agent: the best action against every worse one, as edges "text".

    SPORT (arXiv 2504.21561; released code read) drops pairs that are near-duplicates, which `gates` do.
    Step t has the prompt "s/<t>", the actions "y/<t>" and the best one "w/<t>"; its cells are called "w@s"
    and "l@s".
    """

    steps: int
    gates: tuple[Gate, ...] = ()

    @property
    def emits(self) -> frozenset[str]:
        return frozenset({"text"})

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"w@s", "l@s"})

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(f"{kind}/{t}" for kind in "syw" for t in range(self.steps))

    def __call__(self, group: str, draft: Draft) -> tuple[Comparison, ...]:
        made = (
            self._step(
                Comparison(id=group, prompts=(), responses=(), candidates=(), preferences=()), draft, t
            )
            for t in range(self.steps)
        )
        useful = [comparison for comparison in made if comparison.preferences]
        return tuple(replace(part, id=f"{group}/{number}") for number, part in enumerate(useful))

    def _step(self, comparison: Comparison, draft: Draft, t: int) -> Comparison:
        best, prompt = draft.chosen[f"w/{t}"], draft.at(f"s/{t}")
        comparison, winner = place(comparison, draft, "w@s", best, prompt)
        for index in draft.members(f"y/{t}"):
            if not self._worse(draft, best, index):
                continue
            comparison, loser = place(comparison, draft, "l@s", index, prompt)
            edge = Preference(name="text", winner=winner, loser=loser, key=len(comparison.preferences))
            comparison = replace(comparison, preferences=(*comparison.preferences, edge))
        return comparison

    def _worse(self, draft: Draft, best: int, index: int) -> bool:
        high, low = value_of(draft, best), value_of(draft, index)
        if high is None or low is None or low >= high:
            return False
        scores = [score or Score(value=None, missing="not_judged") for score in draft.scores]
        return all(gate(draft.rollouts, scores, best, index) is None for gate in self.gates)


@dataclass(frozen=True)
class EveryPair(Compare):
    """Every two answers of a judged set whose scores differ by more than `min_gap`, as edges of one name.

    All cells have the role "<of>@<prompt>"; the keys of the edges count up.
    """

    of: str = "y"
    edge: str = "text"
    prompt: str = "x"
    min_gap: float = 0.0

    @property
    def emits(self) -> frozenset[str]:
        return frozenset({self.edge})

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({f"{self.of}@{self.prompt}"})

    @property
    def takes(self) -> frozenset[str]:
        return frozenset({self.of, self.prompt})

    def fill(self, comparison: Comparison, draft: Draft) -> Comparison:
        known = {i: value for i in draft.members(self.of) if (value := value_of(draft, i)) is not None}
        role, prompt = f"{self.of}@{self.prompt}", draft.at(self.prompt)
        cells: dict[int, int] = {}
        for index in known:
            comparison, cells[index] = place(comparison, draft, role, index, prompt)
        pairs = [(a, b) for a in known for b in known if known[a] - known[b] > self.min_gap]
        edges = tuple(
            Preference(name=self.edge, winner=cells[a], loser=cells[b], key=key)
            for key, (a, b) in enumerate(pairs)
        )
        return replace(comparison, preferences=(*comparison.preferences, *edges))


def value_of(draft: Draft, index: int) -> float | None:
    """The score of a rollout, None when it is missing."""
    score = draft.scores[index]
    return None if score is None else score.value
