"""Stages in the learner: what their ends do, that a resumed stage continues exactly, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actors.exporting import syncs_adapter
from pipelines.objectives.base import Feature, Term
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.recipe import Extrapolate, MergeAdapter, Refresh, ResetOptimizer
from pipelines.references import Blended, Harmonic
from pipelines.settings import LearnerSettings, LoraSettings
from pipelines.training_requirements import require_possible

Make = Callable[..., Any]
FREE = Pair("text", scoring=Sum(against=None))


def _next(learner: Any) -> None:
    learner.end_stage()
    learner.begin_stage(learner.stage + 1)


def _two(cases: ModuleType, *then: Any, **second: Any) -> Any:
    """Two stages of the usual objective; the first ends with `then`."""
    return cases.recipe(cases.stage(cases.objective(), then=then), cases.stage(cases.objective(), **second))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("zero", [2, 3])
def test_a_refreshed_reference_is_the_policy(zero: int, make: Make, cases: ModuleType) -> None:
    learner = make(_two(cases, Refresh()), zero_stage=zero)
    learner.train_step([cases.group(1)], 1, 1)
    _next(learner)
    assert _same(learner.reference_weights(), learner.policy.weights())
    again = learner.train_step([cases.group(1)], 1, 2)
    assert again.metrics["margin/text"] == pytest.approx(0, abs=1e-4)
    later = learner.train_step([cases.group(1)], 1, 3)
    assert later.metrics["margin/text"] > 0.1
    assert not _same(learner.reference_weights(), learner.policy.weights())


def test_a_stage_without_reference_can_make_one_for_the_next(make: Make, cases: ModuleType) -> None:
    """Supervised first, then preferences against what that gave."""
    stages = cases.stage(FREE, then=(Refresh(),)), cases.stage(cases.objective())
    learner = make(cases.recipe(*stages))
    learner.train_step([cases.group(1)], 1, 1)
    assert learner.references.twin is None
    _next(learner)
    first = learner.train_step([cases.group(2)], 1, 2)
    assert first.metrics["margin/text"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("zero", [2, 3])
def test_extrapolation_goes_on_from_where_the_stage_started(zero: int, make: Make, cases: ModuleType) -> None:
    """theta + 0.5 (theta - theta_0); the reference refreshed after it is the extrapolated policy."""
    learner = make(
        _two(cases, Extrapolate(alpha=0.5), Refresh(), ResetOptimizer()), zero_stage=zero, warmup_steps=4
    )
    start = learner.policy.weights()
    for step in (1, 2):
        assert learner.train_step([cases.group(1)], 1, step).metrics["lr"] == pytest.approx(2.5e-4 * step)
    end = learner.policy.weights()
    _next(learner)
    got = learner.policy.weights()
    for name, value in got.items():
        assert torch.allclose(value, end[name] + 0.5 * (end[name] - start[name]), atol=1e-7), name
    assert _same(learner.reference_weights(), got) and not _same(got, end)
    assert learner.train_step([cases.group(1)], 1, 3).metrics["lr"] == pytest.approx(2.5e-4)  # warms up again


def test_a_later_extrapolation_leads_away_from_what_was_trained_before(make: Make, cases: ModuleType) -> None:
    """Round 2 ends at hat_2 + 0.5 (hat_2 - hat_1), hat_1 being what the first round had trained.

    With a fixed reward, that is with a step of 1 in each round, the sums are then 1.5, 3.25, 5.125 and not
    1.5, 3, 4.5.
    """
    stage = cases.stage(cases.objective(), then=(Extrapolate(alpha=0.5), Refresh(), ResetOptimizer()))
    learner = make(cases.recipe(stage, stage, stage))
    learner.train_step([cases.group(1)], 1, 1)
    first = learner.policy.weights()
    _next(learner)
    learner.train_step([cases.group(2)], 1, 2)
    second = learner.policy.weights()
    _next(learner)
    for name, value in learner.policy.weights().items():
        wanted = second[name] + 0.5 * (second[name] - first[name])
        assert torch.allclose(value, wanted, atol=1e-7), name


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_reset_optimizer_steps_as_a_new_one(zero: int, make: Make, cases: ModuleType) -> None:
    """Adam's first update is the learning rate wherever the gradient is not tiny; a later one is not."""
    learner = make(_two(cases, ResetOptimizer()), zero_stage=zero)
    for step in (1, 2, 3):
        learner.train_step([cases.group(step)], 1, step)
    before = learner.policy.weights()
    _next(learner)
    learner.train_step([cases.group(9)], 1, 4)
    after = learner.policy.weights()
    moves = torch.cat([(after[name] - before[name]).abs().flatten() for name in after])
    moved = moves[moves > 1e-6]
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-2)
    assert float(moves.max()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_merged_adapter_is_the_new_base(
    zero: int, make: Make, cases: ModuleType, model: Path, tmp_path: Path
) -> None:
    recipe = _two(cases, MergeAdapter(rank=4), Refresh())
    learner = make(recipe, lora=LoraSettings(), zero_stage=zero, lr=1e-2)
    group = cases.group(1)
    for step in (1, 2):
        learner.train_step([group], 1, step)
    merged = learner.export()
    assert set(merged) == set(load_file(model / "model.safetensors"))  # whole weights, not an adapter
    _next(learner)
    assert all(np.array_equal(merged[name], value) for name, value in learner.export().items())
    assert learner.policy.lora.rank == 4
    assert _same(learner.reference_weights(), learner.policy.weights())
    assert learner.train_step([group], 1, 3).metrics["margin/text"] == pytest.approx(0, abs=1e-4)
    assert learner.train_step([group], 1, 4).metrics["margin/text"] > 0.1
    learner.save(tmp_path)
    assert not (tmp_path / "adapter").exists()  # it would not fit the run's model


def test_versions_are_adapters_only_over_an_unchanged_base(cases: ModuleType) -> None:
    whole, lora = LearnerSettings(), LearnerSettings(lora=LoraSettings())
    plain, merging = cases.recipe(), _two(cases, MergeAdapter())
    assert [syncs_adapter(s, r) for s in (whole, lora) for r in (plain, merging)] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("lora", [None, LoraSettings()])
def test_trainable_freezes_everything_else(lora: Any, make: Make, cases: ModuleType) -> None:
    """The first stage trains the attention of one layer, the second one all; weights carry over exactly."""
    stages = (
        cases.stage(cases.objective(), trainable=(r"layers\.1\.self_attn",)),
        cases.stage(cases.objective()),
    )
    learner = make(cases.recipe(*stages), zero_stage=2, lora=lora)
    names = dict(learner.policy.model.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    learner.train_step([cases.group(1)], 1, 1)
    learner.train_step([cases.group(1)], 1, 2)
    moved = {name for name, p in names.items() if not torch.equal(p, before[name])}
    assert moved and all("layers.1.self_attn" in name for name in moved)
    ended = {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}
    _next(learner)
    now = {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}
    assert _same(now, ended)
    learner.train_step([cases.group(1)], 1, 3)
    left = [name for name, p in learner.policy.model.named_parameters() if not torch.equal(p, now[name])]
    assert any("layers.0." in name for name in left)


def test_a_pattern_that_names_nothing_is_refused(make: Make, cases: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"no trained parameter has a name that 'projektor' finds"):
        make(cases.recipe(cases.stage(cases.objective(), trainable=("layers", "projektor"))))


def test_a_stage_can_start_from_the_runs_model(make: Make, cases: ModuleType) -> None:
    learner = make(_two(cases, init="start"), zero_stage=2)
    start = learner.policy.weights()
    learner.train_step([cases.group(1)], 1, 1)
    assert not _same(learner.policy.weights(), start)
    _next(learner)
    assert _same(learner.policy.weights(), start)


# -- resuming -----------------------------------------------------------------------------------------------

RESUMED = {
    "refreshed": ({"zero_stage": 2}, (Refresh(),), {}),
    "blended": ({"zero_stage": 3}, (), {"reference": Blended(alpha=0.5, every=1)}),
    "merged": ({"zero_stage": 2, "lora": LoraSettings(), "lr": 1e-2}, (MergeAdapter(rank=4),), {}),
    "extrapolating": ({"zero_stage": 0}, (Refresh(),), {"then": (Extrapolate(alpha=0.5), ResetOptimizer())}),
    "partly frozen": ({"zero_stage": 2}, (), {"trainable": (r"layers\.1",)}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_in_the_second_stage_continues_bit_for_bit(
    case: str, make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    """With a head, running statistics, and whatever the end of the first stage left behind."""
    changes, then, slots = RESUMED[case]
    terms = cases.everything()
    recipe = cases.recipe(cases.stage(terms, then=then), cases.stage(terms, **slots))
    groups = [cases.group(seed) for seed in (1, 2)]

    def finish(learner: Any) -> tuple[Any, Any]:
        result = learner.train_step(groups, 2, 4)
        learner.end_stage()
        return result, learner

    learner = make(recipe, warmup_steps=3, **changes)
    learner.train_step(groups, 2, 1)
    learner.train_step(groups, 2, 2)
    _next(learner)
    learner.train_step(groups, 2, 3)
    learner.save(tmp_path)
    last, through = finish(learner)
    again = make(recipe, warmup_steps=3, **changes)
    again.load(tmp_path)
    assert (again.stage, again.carry) == (1, json.loads(json.dumps(again.carry)))
    repeated, resumed = finish(again)
    odd = ("seconds/forward_backward", "tokens_per_s")
    for key in set(last.metrics) - set(odd):
        assert repeated.metrics[key] == last.metrics[key], key
    assert _same(resumed.policy.weights(), through.policy.weights())
    probes = [item.heads.modules["probe"].state_dict() for item in (resumed, through)]
    assert _same(*probes)
    kept = [item.reference_weights() for item in (resumed, through)]
    assert (kept[0] is None and kept[1] is None) or _same(*kept)


# -- what is refused ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Greedy(Term):
    """Coupled, yet it asks for features."""

    @property
    def coupled(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"kl_forward"})


LORA = {"lora": LoraSettings()}


@pytest.mark.parametrize(
    ("slots", "settings", "message"),
    [
        ({"then": (MergeAdapter(),)}, {}, r"learner\.lora is null; set learner\.lora\.rank"),
        ({"then": (Refresh(),)}, LORA, r"put MergeAdapter\(\) in front of Refresh\(\)"),
        ({"then": (Extrapolate(alpha=0.3),)}, LORA, "not extrapolating weights; set learner.lora=null"),
        ({"reference": Blended()}, LORA, "not blending weights; set learner.lora=null"),
        ({"reference": Blended(alpha=0.01)}, {"dtype": "bfloat16"}, "lost to rounding"),
    ],
)
def test_what_an_adapter_or_a_dtype_cannot_do_is_refused(
    slots: dict[str, Any], settings: dict[str, Any], message: str, cases: ModuleType
) -> None:
    recipe = cases.recipe(cases.stage(cases.objective(), **slots))
    with pytest.raises(ValueError, match=f"stage 0 of recipe 'case'.*{message}"):
        require_possible(LearnerSettings(**settings), recipe)


def test_merging_first_makes_a_refresh_possible(cases: ModuleType) -> None:
    require_possible(LearnerSettings(**LORA), _two(cases, MergeAdapter(), Refresh()))


def test_terms_that_no_forward_can_serve_are_refused(cases: ModuleType) -> None:
    harmonic = Harmonic(paths=("a",), shares=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"defined for answers, not for the \['kl_forward', 'kl_reverse', "):
        require_possible(LearnerSettings(), cases.recipe(cases.stage(cases.Curious(), reference=harmonic)))
    with pytest.raises(ValueError, match=r"Greedy\(\) is coupled"):
        require_possible(LearnerSettings(), cases.recipe(cases.stage(Greedy())))
