"""Objectives on plain numbers, and programs played with the glyphs world's tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.objectives.base import Objective
from pipelines.objectives.batch import tabulate
from pipelines.recipe import Stage
from pipelines.recipes import load
from pipelines.rollout import Draft, Drop
from pipelines.types import (
    Candidate,
    Comparison,
    Message,
    Part,
    Preference,
    Prompt,
    Response,
    Score,
)

PROMPT = Prompt(id="row", messages=(Message(role="user", parts=(Part(kind="text", text="x"),)),))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A role's answer: token log-probs of policy and reference, nats, and what was judged."""

    policy: Sequence[float]
    reference: Sequence[float]
    value: float | None = None
    parts: Mapping[str, float] | None = None
    features: Mapping[str, Sequence[Any]] | None = None

    @property
    def score(self) -> Score | None:
        if self.value is None and self.parts is None:
            return None
        missing = "unjudged" if self.value is None else None
        return Score(value=self.value, missing=missing, parts=dict(self.parts or {}))


Row = Sequence[tuple[str, Cell]]  # (role, answer); a role may come several times
EdgesOf = Mapping[str, tuple[int, int]]  # name -> places of winner and loser


@dataclass(frozen=True, kw_only=True)
class Valued:
    """A composed objective: its value and d value / d policy log-prob of each token, one row per cell."""

    value: float
    slopes: list[list[float]]


def comparison_of(number: int, cells: Row, edges: EdgesOf, spans: Mapping[str, Any]) -> Comparison:
    """Every answer has tokens of its own, so that none is scored together with another."""
    responses = tuple(
        Response(tokens=tuple(range(100 * i + 1, 100 * i + 1 + len(cell.policy))), text=role)
        for i, (role, cell) in enumerate(cells)
    )
    candidates = tuple(
        Candidate(prompt=0, response=i, role=role, score=cell.score) for i, (role, cell) in enumerate(cells)
    )
    preferences = tuple(
        Preference(name=name, winner=winner, loser=loser, spans=spans if name == "text" else {})
        for name, (winner, loser) in edges.items()
    )
    return Comparison(
        id=f"g/{number}",
        prompts=(PROMPT,),
        responses=responses,
        candidates=candidates,
        preferences=preferences,
    )


@pytest.fixture(scope="session")
def cell() -> Callable[..., Cell]:
    return Cell


@pytest.fixture(scope="session")
def win(cell: Callable[..., Any]) -> Any:
    return cell(policy=(-0.5, -0.5), reference=(-0.75, -0.75))


@pytest.fixture(scope="session")
def lose(cell: Callable[..., Any]) -> Any:
    return cell(policy=(-1.0,) * 4, reference=(-0.5, -0.5, -1.25, -1.25))


@pytest.fixture(scope="session")
def valued() -> Callable[..., Valued]:
    """(objective, rows of cells, edges by place) -> `Valued`, as the learner reduces: sum of values over sum
    of weights of each term, over all comparisons."""

    def build(
        objective: Objective,
        rows: Sequence[Row],
        edges: EdgesOf,
        *,
        spans: Mapping[str, Any] | None = None,
        carry: Mapping[str, float] | None = None,
        heads: Mapping[str, Any] | None = None,
    ) -> Valued:
        comparisons = [comparison_of(i, cells, edges, spans or {}) for i, cells in enumerate(rows)]
        table = tabulate(comparisons)
        reads = table.reads()
        flat = [cell for cells in rows for _, cell in cells]

        def padded(lines: Sequence[Sequence[Any]]) -> Tensor:
            widest = [0.0 * torch.as_tensor(lines[0][0], dtype=torch.float64)]
            return torch.stack(
                [
                    torch.stack(
                        [torch.as_tensor(v, dtype=torch.float64) for v in line]
                        + widest * (table.longest - len(line))
                    )
                    for line in lines
                ]
            )

        policy = padded([cell.policy for cell in flat]).requires_grad_()
        names = {name for cell in flat for name in cell.features or {}}
        reads = replace(
            reads,
            tokens={
                "policy": policy,
                "reference": padded([cell.reference for cell in flat]),
                "behaviour": torch.full_like(policy, torch.nan),
            },
            features={name: padded([(cell.features or {})[name] for cell in flat]) for name in names},
            carry=carry or {},
            heads=heads or {},
        )
        total = policy.sum() * 0
        for weight, term in objective.terms:
            loss = term(reads)
            if float(loss.weight.sum()) > 0:
                total = total + weight * loss.value.sum() / loss.weight.sum()
        total.backward()
        assert policy.grad is not None
        slopes = [row[: len(cell.policy)].tolist() for row, cell in zip(policy.grad, flat, strict=True)]
        return Valued(value=float(total.detach()), slopes=slopes)

    return build


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a stage made of one prompt."""

    stage: Stage
    draft: Draft
    comparisons: tuple[Comparison, ...]
    tools: Any

    @property
    def one(self) -> Comparison:
        (comparison,) = self.comparisons
        return comparison

    def side(self, edge: str, which: str) -> tuple[Candidate, Prompt, Response]:
        """Candidate, prompt and response of the winner or the loser of the only edge of that name."""
        (found,) = [item for item in self.one.preferences if item.name == edge]
        return self.placed(self.one.candidates[found.winner if which == "winner" else found.loser])

    def role(self, role: str) -> list[tuple[Candidate, Prompt, Response]]:
        return [self.placed(item) for item in self.one.candidates if item.role == role]

    def placed(self, candidate: Candidate) -> tuple[Candidate, Prompt, Response]:
        return candidate, self.one.prompts[candidate.prompt], self.one.responses[candidate.response]


@pytest.fixture
def play(glyphs_draft: Callable[..., Draft], glyphs_tools: Callable[..., Any]) -> Callable[..., Played]:
    """Runs a stage of a recipe on one prompt, with the first seed whose group is not dropped."""

    def build(
        name: str,
        stage: int = 0,
        *,
        gold: Mapping[str, Any] | None = None,
        tools: Any = None,
        **params: Any,
    ) -> Played:
        built = load(name, params).stages[stage]
        draft = glyphs_draft()
        prompt = replace(draft.prompt, gold={**draft.prompt.gold, **(gold or {})})
        draft = replace(draft, prompts={"x": prompt})
        reasons: list[str] = []
        for seed in range(12):
            used = tools or glyphs_tools()
            used.clean = prompt.media[0]
            try:
                done = asyncio.run(built.rollout(draft, used, seed))
            except Drop as drop:
                reasons.append(drop.reason)
                continue
            return Played(stage=built, draft=done, comparisons=built.compare("g", done), tools=used)
        raise AssertionError(f"every group was dropped: {reasons}")

    return build
