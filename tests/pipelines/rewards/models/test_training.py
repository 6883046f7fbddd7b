"""The training loop on a linear reward: it learns, repeats itself, stops, and keeps the best weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pipelines.rewards.models.losses import bradley_terry
from pipelines.rewards.models.training import Fit, fit

Pair = tuple[torch.Tensor, torch.Tensor]


def pairs(count: int, seed: int) -> list[Pair]:
    """Winners are those further along (1, -1, 0, 0)."""
    drawn = torch.randn(count, 2, 4, generator=torch.Generator().manual_seed(seed))
    wanted = torch.tensor([1.0, -1.0, 0.0, 0.0])
    return [(a, b) if a @ wanted > b @ wanted else (b, a) for a, b in drawn]


class Linear:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(4, 1)

    def loss(self, batch: Sequence[Pair]) -> torch.Tensor:
        won, lost = (torch.stack(side) for side in zip(*batch, strict=True))
        return bradley_terry(self.module(won), self.module(lost))

    def accuracy(self, batch: Sequence[Pair]) -> float:
        won, lost = (torch.stack(side) for side in zip(*batch, strict=True))
        return float((self.module(won) > self.module(lost)).float().mean())


def test_it_learns_and_repeats_itself():
    models = Linear(), Linear()
    how = Fit(steps=100, batch=16, lr=0.05, every=20)
    histories = [fit(m.module, m.loss, m.accuracy, pairs(200, 1), pairs(200, 2), how) for m in models]
    assert histories[0].held_out[0][1] < 0.8 < 0.95 < histories[0].best
    assert histories[0] == histories[1]
    assert torch.equal(models[0].module.weight, models[1].module.weight)
    assert models[0].accuracy(pairs(200, 2)) == histories[0].best


def test_other_seeds_shuffle_otherwise():
    seen: list[tuple[float, ...]] = []
    for seed in (0, 1):
        model, how = Linear(), Fit(steps=5, batch=16, seed=seed)
        history = fit(model.module, model.loss, model.accuracy, pairs(200, 1), pairs(20, 2), how)
        seen.append(history.losses)
    assert seen[0] != seen[1]


def test_it_stops_when_nothing_gets_better_and_keeps_the_best():
    """Looks 0.5 (start), 0.6, 0.55, 0.4: two without a better one end it; the weights are those of 0.6."""
    model, looks, seen = Linear(), iter([0.5, 0.6, 0.55, 0.4, 0.9]), list[torch.Tensor]()

    def measure(items: Sequence[Pair]) -> float:
        seen.append(model.module.weight.detach().clone())
        return next(looks)

    how = Fit(steps=100, batch=4, lr=0.05, every=5, patience=2)
    history = fit(model.module, model.loss, measure, pairs(50, 1), pairs(5, 2), how)
    assert history.held_out == ((0, 0.5), (5, 0.6), (10, 0.55), (15, 0.4)) and history.best == 0.6
    assert torch.equal(model.module.weight, seen[1]) and len(history.losses) == 15


def test_what_cannot_be_trained_says_so():
    model = Linear()
    with pytest.raises(ValueError, match="0 items"):
        fit(model.module, model.loss, model.accuracy, [], pairs(5, 1), Fit())
    with pytest.raises(ValueError, match="the loss of step 1 is nan"):
        fit(
            model.module, lambda b: model.loss(b) * torch.nan, model.accuracy, pairs(5, 1), pairs(5, 1), Fit()
        )
    with pytest.raises(ValueError, match="at least 1"):
        Fit(batch=0)
