"""However comparisons are batched, sum(value) / sum(weight) over all of them is the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Reads, Term
from pipelines.objectives.batch import tabulate
from pipelines.objectives.pair import Pair
from pipelines.types import Candidate, Comparison, Message, Part, Preference, Prompt, Response

TERMS = (Pair("text", 0.3), Pair("media"), Anchor("text.winner", 0.1, 0.7), Anchor("media.loser"))


def prompt(text: str) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", parts=(Part(kind="text", text=text),)),))


@st.composite
def comparisons(draw: st.DrawFn) -> list[Comparison]:
    """1 to 6 comparisons with 2 to 5 candidates each and any edges between different candidates."""
    made: list[Comparison] = []
    for number in range(draw(st.integers(1, 6))):
        n = draw(st.integers(2, 5))
        pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
        edges = draw(
            st.lists(
                st.tuples(st.sampled_from(["text", "media"]), pair, st.floats(-2, 2), st.floats(0.1, 3)),
                max_size=4,
            )
        )
        made.append(
            Comparison(
                id=f"g{number}/0",
                prompts=(prompt(f"x{number}"),),
                responses=tuple(Response(tokens=(number, i), text=f"y{i}") for i in range(n)),
                candidates=tuple(Candidate(prompt=0, response=i, role=f"y{i}@x") for i in range(n)),
                preferences=tuple(
                    Preference(name=name, winner=w, loser=o, margin=margin, weight=weight)
                    for name, (w, o), margin, weight in edges
                ),
            )
        )
    return made


def weightless(comparison: Comparison) -> Comparison:
    """The same comparison with weight 0 on every edge, as padding has."""
    return replace(comparison, preferences=tuple(replace(p, weight=0.0) for p in comparison.preferences))


def totals(batch: list[Comparison], term: Term, extra_cells: int = 0) -> tuple[float, float]:
    """(sum of values, sum of weights) with log-ratios that depend on the cell's tokens alone."""
    table = tabulate(batch)
    rho = [random.Random(str(cell.response.tokens)).uniform(-9, 9) for cell in table.cells] + [
        1e3
    ] * extra_cells
    policy = torch.tensor(rho, dtype=torch.float64)
    reads = Reads(
        size=table.size,
        logps={"policy": policy, "reference": torch.zeros_like(policy)},
        lengths=torch.ones(len(rho), dtype=torch.int64),
        edges=table.edges,
    )
    loss = term(reads)
    assert loss.value.shape == loss.weight.shape == (len(batch),)
    return loss.value.sum().item(), loss.weight.double().sum().item()


@given(comparisons(), st.data())
def test_order_split_and_padding_change_nothing(batch: list[Comparison], data: st.DataObject) -> None:
    for term in TERMS:
        whole = totals(batch, term)
        shuffled = data.draw(st.permutations(batch))
        assert totals(shuffled, term) == pytest.approx(whole)
        cut = data.draw(st.integers(0, len(batch)))
        first, second = totals(shuffled[:cut], term), totals(shuffled[cut:], term)
        assert (first[0] + second[0], first[1] + second[1]) == pytest.approx(whole)
        assert totals([*batch, weightless(batch[0])], term) == pytest.approx(whole)
        assert totals(batch, term, extra_cells=3) == pytest.approx(whole)
