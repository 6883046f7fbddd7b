"""A training loop for verifiers: seeded batches, early stop on a held-out measure, best weights kept."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to fit. Raises ValueError for sizes below 1."""

    steps: int = 200
    batch: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 25  # steps between two looks at the held-out items
    patience: int = 4  # looks without a better one before it stops
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.every, self.patience) < 1:
            raise ValueError(f"Fit: steps, batch, every and patience must be at least 1, got {self}")


@dataclass(frozen=True, kw_only=True)
class History:
    losses: tuple[float, ...]  # of each step
    held_out: tuple[tuple[int, float], ...]  # (steps taken, measure)
    best: float  # held-out measure of the weights that were kept


def fit(
    module: nn.Module,
    loss: Callable[[Sequence[T]], Tensor],
    measure: Callable[[Sequence[T]], float],
    items: Sequence[T],
    held_out: Sequence[T],
    settings: Fit,
) -> History:
    """Minimise the mean of `loss(batch)` over the parameters that require a gradient.

    `measure`: larger is better, evaluated without gradient on `held_out`, before the first step as well; the
    weights that measured best are in `module` at the end. The same arguments give the same weights.
    Raises ValueError without items or for a loss that is not finite.
    """
    if not items or not held_out:
        raise ValueError(f"fit: got {len(items)} items and {len(held_out)} held-out ones; both are needed")
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    batches = _Batches(items, settings)
    best, kept = _look(module, measure, held_out), copy.deepcopy(module.state_dict())
    looks, spent, values = [(0, best)], 0, list[float]()
    for step in range(1, settings.steps + 1):
        module.train()
        value = loss(batches.next()).mean()
        if not torch.isfinite(value):
            raise ValueError(
                f"fit: the loss of step {step} is {float(value.detach())}; lower the learning rate"
            )
        optimizer.zero_grad()
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        values.append(float(value.detach()))
        if step % settings.every == 0 or step == settings.steps:
            looks.append((step, _look(module, measure, held_out)))
            spent += 1
            if looks[-1][1] > best:
                best, kept, spent = looks[-1][1], copy.deepcopy(module.state_dict()), 0
            if spent == settings.patience:
                break
    module.load_state_dict(kept)
    module.eval()
    return History(losses=tuple(values), held_out=tuple(looks), best=best)


def _look(module: nn.Module, measure: Callable[[Sequence[T]], float], held_out: Sequence[T]) -> float:
    module.eval()
    with torch.no_grad():
        return measure(held_out)


class _Batches(Generic[T]):
    """Items in seeded order, epoch after epoch; an epoch's last batch may be smaller."""

    def __init__(self, items: Sequence[T], settings: Fit) -> None:
        self._items, self._size, self._rng = items, settings.batch, random.Random(settings.seed)
        self._order: list[int] = []

    def next(self) -> Sequence[T]:
        if not self._order:
            self._order = list(range(len(self._items)))
            self._rng.shuffle(self._order)
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        return [self._items[i] for i in chosen]
