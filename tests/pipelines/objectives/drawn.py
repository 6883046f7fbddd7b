"""What the tests of identities share: drawn answers, and what it means for two losses to be the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.objectives.base import Objective, Reads, Term

MakeReads = Callable[..., Reads]
Rows = list[list[float]]
PAIR = {"text": [(0, 1, 0)]}
number = st.floats(-4, -0.05)
row = st.lists(number, min_size=1, max_size=4)
beta = st.floats(0.05, 2)


def given(*drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis' own, with fewer examples: each one builds graphs."""
    return lambda test: settings(max_examples=30)(hypothesis.given(*drawn)(test))


@st.composite
def answers(draw: st.DrawFn, count: int = 2) -> tuple[Rows, Rows]:
    """(policy, reference) log-probs of some answers."""
    policy = [draw(row) for _ in range(count)]
    return policy, [[draw(number) for _ in tokens] for tokens in policy]


def reduced(objective: Term | Objective, reads: Reads) -> Tensor:
    terms = objective.terms if isinstance(objective, Objective) else ((1.0, objective),)
    return torch.stack([w * t.value(reads).sum() / t.weight(reads).sum() for w, t in terms]).sum()


def same(one: Term | Objective, other: Term | Objective, reads: Reads, offset: float = 0.0) -> None:
    """Equal values but for a constant, and equal gradients."""
    first, second = reduced(one, reads), reduced(other, reads)
    assert first.item() == pytest.approx(second.item() + offset, rel=1e-9, abs=1e-9)
    policy = reads.tokens["policy"]
    gradients = [torch.autograd.grad(loss, policy)[0] * reads.mask for loss in (first, second)]
    torch.testing.assert_close(gradients[0], gradients[1])


def by_answer(loss: Tensor, reads: Reads) -> list[float]:
    """Gradient with respect to each answer's summed log-prob."""
    (gradient,) = torch.autograd.grad(loss, reads.tokens["policy"])
    return gradient[:, 0].tolist()
