"""What terms read, against a plain forward of the same model; coupled terms, statistics, heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.objectives.base import Reads, Statistic, Term
from pipelines.types import NOT_SCORED, Behaviour, Group

Make = Callable[..., Any]


def _with_targets(group: Group) -> Group:
    """Its rejected answer is fed as it is and scored on other words, but not at its first position."""
    comparison = group.comparisons[0]
    good, bad = comparison.responses
    targets = (NOT_SCORED, *(20 + i for i in range(len(bad.tokens) - 1)))
    comparison = replace(comparison, responses=(good, replace(bad, targets=targets)))
    return replace(group, comparisons=(comparison,))


def _sampled(group: Group) -> Group:
    """Its chosen answer was sampled with known log-probabilities."""
    comparison = group.comparisons[0]
    count = len(comparison.responses[0].tokens)
    behaviour = Behaviour(
        stream="policy", decoder={}, oldest=0, newest=0, logps=tuple(-0.1 * i for i in range(count))
    )
    first, *others = comparison.candidates
    comparison = replace(comparison, candidates=(replace(first, behaviour=behaviour), *others))
    return replace(group, comparisons=(comparison,))


def _read(learner: Any, group: Group) -> Reads:
    [micro] = learner.reader.micro_batches(group.comparisons, 1)
    return learner.reader.read(micro, group.media, 1, learner.objective, {})[0]


def _logits(model: Path, learner: Any, group: Group, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities over the vocabulary, hidden states), at the positions that predict the answer."""
    from transformers import AutoModelForImageTextToText

    comparison = group.comparisons[0]
    candidate = comparison.candidates[cell]
    encoded = learner.processing.encode(comparison.prompts[candidate.prompt], group.media)
    tokens = comparison.responses[candidate.response].tokens
    ids = torch.tensor([[*encoded.input_ids, *tokens]])
    images: dict[str, Any] = {
        "pixel_values": encoded.pixel_values,
        "image_grid_thw": encoded.image_grid_thw,
        "mm_token_type_ids": (ids == learner.processing.image_token).int(),
    }
    with torch.no_grad():
        net = AutoModelForImageTextToText.from_pretrained(model)
        found = net(input_ids=ids, output_hidden_states=True, **images)
    at = slice(len(encoded.input_ids) - 1, -1)
    return found.logits[0, at].log_softmax(-1), found.hidden_states[-1][0, at]


def test_tokens_and_features_equal_a_plain_forward(make: Make, model: Path, cases: ModuleType) -> None:
    """Cells: the chosen answer, the rejected one with targets, the chosen one with a damaged picture."""
    learner = make(cases.recipe(cases.stage(cases.Curious())))
    group = _sampled(_with_targets(cases.group(1)))
    reads = _read(learner, group)
    responses = group.comparisons[0].responses
    for row, response in enumerate((responses[0], responses[1], responses[0])):
        logps, hidden = _logits(model, learner, group, row)
        count = len(response.tokens)
        scored = torch.tensor([target != NOT_SCORED for target in response.scored])
        assert torch.equal(reads.mask[row, :count], scored) and not reads.mask[row, count:].any()
        assert reads.lengths[row] == scored.sum()
        picked = logps.gather(-1, torch.tensor(response.scored).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        entropy = -(logps.exp() * logps).sum(-1)
        collision = logps.exp().square().sum(-1).log()
        for got, expected in (
            (reads.tokens["policy"], picked),
            (reads.tokens["reference"], picked),
            (reads.features["entropy"], entropy),
            (reads.features["collision"], collision),
        ):
            assert torch.allclose(got[row, :count], expected * scored, atol=1e-4)
            assert not got[row, count:].any()
        for name in ("hidden", "reference_hidden"):
            wanted = hidden * scored.unsqueeze(-1)
            assert torch.allclose(reads.features[name][row, :count], wanted, atol=1e-3), name
    for name in ("kl_forward", "kl_reverse"):  # the policy is still the reference
        assert torch.allclose(reads.features[name], torch.zeros(()), atol=1e-5)
    logged = torch.tensor([-0.1 * i for i in range(len(responses[0].tokens))])
    assert torch.allclose(reads.tokens["behaviour"][0, : len(logged)], logged)
    assert reads.tokens["behaviour"][1][reads.mask[1]].isnan().all()  # nobody sampled it
    assert reads.tokens["policy"].requires_grad and not reads.tokens["reference"].requires_grad


def test_only_what_is_needed_is_read(make: Make, cases: ModuleType) -> None:
    reads = _read(make(), cases.group(1))
    assert set(reads.tokens) == {"policy", "reference"} and not reads.features and not reads.heads


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_coupled_term_is_differentiated_over_the_whole_batch(
    micro_batch: int, make: Make, cases: ModuleType
) -> None:
    """Replayed over micro-batches it equals plain autograd over one micro-batch that holds everything."""
    groups = [cases.group(1), cases.group(2, damaged=False), cases.group(3, images=False)]

    def run(replayed: bool, size: int) -> tuple[dict[str, np.ndarray], float]:
        terms = 0.5 * cases.Centred(replayed=replayed) + cases.objective()
        learner = make(cases.recipe(cases.stage(terms)), micro_batch=size)
        result = learner.train_step(groups, 3, 1)
        return learner.gradients, result.metrics["loss/centred_text"]

    (expected, value), (got, replayed) = run(False, 3), run(True, micro_batch)
    scale = max(float(np.abs(grad).max()) for grad in expected.values())
    assert scale > 0.1 and replayed == pytest.approx(value, rel=1e-4)
    for name, grad in expected.items():
        assert float(np.abs(got[name] - grad).max()) <= 1e-5 * scale, name


@dataclass(frozen=True)
class Counting(Term):
    """A term without loss that observes what it is told."""

    on: str = "text"

    @property
    def edges(self) -> frozenset[str]:
        return frozenset({self.on})

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Statistic(name="margin", kind="ema", decay=0.75), Statistic(name="seen", kind="mean"))

    def weight(self, reads: Reads) -> torch.Tensor:
        return torch.ones(reads.size)

    def value(self, reads: Reads) -> torch.Tensor:
        return reads.logps["policy"][reads.edges[self.on].winner] * 0.0

    def observe(self, reads: Reads) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        weight = reads.edges[self.on].weight
        count = torch.tensor(float(len(weight)))
        return {"margin": (weight.sum(), count), "seen/weight": (weight.sum(), count)}


def test_running_statistics_are_reduced_over_the_step(make: Make, cases: ModuleType) -> None:
    """The edges of group s weigh 1 + (s mod 3) / 4: groups 1, 2, 3 average to 1.25, group 2 alone is 1.5.

    The moving average takes 1.25 first, then 0.75 * 1.25 + 0.25 * 1.5 = 1.3125; the mean over all four edges
    is (3.75 + 1.5) / 4 = 1.3125 as well, and after another group 3 (1.0) they are 1.234375 and 1.25.
    """
    learner = make(cases.recipe(cases.stage(Counting() + cases.objective())), micro_batch=2)
    learner.train_step([cases.group(seed) for seed in (1, 2, 3)], 3, 1)
    assert learner.carry == pytest.approx({"margin": 1.25, "seen/weight": 1.25, "seen/weight.count": 3})
    result = learner.train_step([cases.group(2)], 1, 2)
    assert learner.carry == pytest.approx({"margin": 1.3125, "seen/weight": 1.3125, "seen/weight.count": 4})
    assert result.metrics["running/margin"] == pytest.approx(1.3125)
    learner.train_step([cases.group(3)], 1, 3)
    assert learner.carry == pytest.approx({"margin": 1.234375, "seen/weight": 1.25, "seen/weight.count": 5})


def test_heads_learn_and_are_never_exported(make: Make, cases: ModuleType) -> None:
    learner = make(cases.recipe(cases.stage(cases.Curious())), zero_stage=2)
    before = {name: p.clone() for name, p in learner.heads.modules["probe"].named_parameters()}
    learner.train_step([cases.group(1)], 1, 1)
    after = dict(learner.heads.modules["probe"].named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    assert all("probe" not in name for name in learner.export())
    assert all(p.grad is None for p in after.values())
