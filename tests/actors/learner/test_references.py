"""References: what they compute, that they stay or move as asked, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.references import harmonic
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.references import Blended, Harmonic, NoReference
from pipelines.settings import LoraSettings

Make = Callable[..., Any]
NONE = torch.tensor([-1])
logp = st.floats(-300, -0.01)


def _sums(*columns: float) -> torch.Tensor:
    return torch.tensor(columns, dtype=torch.float64).unsqueeze(-1)


# -- the harmonic mean --------------------------------------------------------------------------------------


@given(value=logp, share=st.floats(0, 1))
def test_equal_references_are_one(value: float, share: float) -> None:
    """sum_k alpha_k / pi = 1 / pi, whatever the shares: plain DPO."""
    for clip in (None, 0.1):
        got = harmonic(_sums(value, value), (share, 1 - share), clip, NONE)
        assert float(got) == pytest.approx(value, rel=1e-9)


@given(first=logp, second=logp)
def test_a_share_of_one_selects_its_reference(first: float, second: float) -> None:
    sums = _sums(first, second)
    assert float(harmonic(sums, (1.0, 0.0), None, NONE)) == pytest.approx(first)
    assert float(harmonic(sums, (0.0, 1.0), None, NONE)) == pytest.approx(second)


@given(first=logp, second=logp, share=st.floats(0.01, 0.99))
def test_harmonic_is_at_most_geometric_at_most_arithmetic(first: float, second: float, share: float) -> None:
    got = float(harmonic(_sums(first, second), (share, 1 - share), None, NONE))
    geometric = share * first + (1 - share) * second
    arithmetic = float(
        torch.logsumexp(torch.tensor([math.log(share) + first, math.log1p(-share) + second]), 0)
    )
    slack = 1e-4 * (1 + abs(first) + abs(second))
    assert got <= geometric + slack and geometric <= arithmetic + slack


def test_half_and_half_by_hand() -> None:
    """1 / (0.5 / 0.5 + 0.5 / 0.25) = 1/3."""
    got = harmonic(_sums(math.log(0.5), math.log(0.25)), (0.5, 0.5), None, NONE)
    assert float(got) == pytest.approx(math.log(1 / 3))


def test_it_is_finite_far_down() -> None:
    got = harmonic(_sums(-1e4, -2e4), (0.5, 0.5), None, NONE)
    assert float(got) == pytest.approx(-2e4 + math.log(2))


def test_the_clip_splits_by_the_size_of_both_sides() -> None:
    """Answers of log-probs (-10, -30) and (-20, -40) under two models; sizes b are 20 and 30.

    The harmonic means, about -30 + log 2 and -40 + log 2, lie below the clip: e of the first is
    0.1 * 20 / 50 = 0.04, so -10 * 1.04 = -10.4; of the second 0.1 * 30 / 50 = 0.06, so -20 * 1.06 = -21.2.
    """
    sums = torch.tensor([[-10.0, -20.0], [-30.0, -40.0]])
    got = harmonic(sums, (0.5, 0.5), 0.1, torch.tensor([1, 0]))
    assert got.tolist() == pytest.approx([-10.4, -21.2])
    assert harmonic(sums, (0.5, 0.5), 0.0, torch.tensor([1, 0])).tolist() == [-10.0, -20.0]


# -- in the learner -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary."""
    from pipelines.worlds.glyphs.model import build_model, save_checkpoint

    folder = tmp_path_factory.mktemp("other")
    save_checkpoint(build_model(7), folder)
    return folder


def _margin(learner: Any, group: Any) -> float:
    return learner.train_step([group], 1, 1).metrics["margin/text"]


def test_a_harmonic_reference_of_equal_models_is_dpo(make: Make, model: Path, cases: ModuleType) -> None:
    same = Harmonic(paths=(str(model),), shares=(0.3, 0.7), clip=None)
    plain, got = make(), make(cases.recipe(cases.stage(cases.objective(), reference=same)))
    group = cases.group(1)
    for step in (1, 2):
        expected = plain.train_step([group], 1, step).metrics
        found = got.train_step([group], 1, step).metrics
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert found["margin/text"] == pytest.approx(expected["margin/text"], abs=1e-2)


def test_a_harmonic_reference_scores_answers_with_all_models(
    make: Make, other: Path, cases: ModuleType
) -> None:
    """Its sum over an answer is the harmonic mean of the sums that each model alone gives."""
    stage = cases.stage(
        cases.objective(), reference=Harmonic(paths=(str(other),), shares=(0.5, 0.5), clip=None)
    )
    learner, group = make(cases.recipe(stage)), cases.group(1)
    [micro] = learner.reader.micro_batches(group.comparisons, 1)
    reads = learner.reader.read(micro, group.media, 1, learner.objective, {})[0]
    first = reads.logps["policy"].detach()  # the policy is still the run's model
    with torch.no_grad():
        [twin] = learner.references._others.values()
        from actors.forward import collate

        batch = collate(learner.reader.rows.of(micro.table, group.media), learner.processing)
        second = twin.score(batch)["logps"].sum(-1)[: len(first)]
    expected = -torch.logsumexp(torch.stack([-first, -second]) + math.log(0.5), 0)
    assert torch.allclose(reads.logps["reference"], expected, atol=1e-2)
    assert not torch.allclose(first, second, atol=1.0)


def test_another_vocabulary_is_refused(make: Make, other: Path, tmp_path: Path, cases: ModuleType) -> None:
    shutil.copytree(other, tmp_path / "renamed")
    file = tmp_path / "renamed" / "tokenizer.json"
    file.write_text(file.read_text().replace('"red"', '"rot"'))
    reference = Harmonic(paths=(str(tmp_path / "renamed"),), shares=(0.5, 0.5))
    with pytest.raises(ValueError, match="its vocabulary is not that of"):
        make(cases.recipe(cases.stage(cases.objective(), reference=reference)))


@pytest.mark.parametrize("stage", [0, 2])
def test_the_reference_has_storage_of_its_own(stage: int, make: Make, cases: ModuleType) -> None:
    learner = make(zero_stage=stage)
    learner.train_step([cases.group(1)], 1, 1)
    policy = {p.data_ptr() for p in learner.policy.model.parameters()}
    reference = {p.data_ptr() for p in learner.references.twin.model.parameters()}
    assert len(policy) > 10 and not policy & reference


def _reference(learner: Any, groups: list[Any], size: int) -> list[torch.Tensor]:
    """Log-probs of each cell's tokens, read in micro-batches of `size` comparisons."""
    comparisons = [c for group in groups for c in group.comparisons]
    media = {digest: item for group in groups for digest, item in group.media.items()}
    rows: list[torch.Tensor] = []
    for start in range(0, len(comparisons), size):
        [micro] = learner.reader.micro_batches(comparisons[start : start + size], size)
        reads = learner.reader.read(micro, media, 1, learner.objective, {})[0]
        rows += [row[:n] for row, n in zip(reads.tokens["reference"], reads.lengths, strict=True)]
    return rows


def test_a_copy_and_the_model_without_its_adapter_say_the_same_however_it_is_batched(
    make: Make, cases: ModuleType
) -> None:
    """The two kinds of frozen reference, before and after a step moved the policy."""
    groups = [cases.group(1), cases.group(2, damaged=False), cases.group(3, images=False)]
    copy, adapter = make(lr=1e-2), make(lora=LoraSettings(), lr=1e-2)
    start = _reference(copy, groups, 3)
    for learner in (copy, adapter):
        learner.train_step(groups, 3, 1)
    for learner, size in ((copy, 3), (copy, 1), (adapter, 3), (adapter, 1)):
        for row, wanted in zip(_reference(learner, groups, size), start, strict=True):
            assert torch.allclose(row, wanted, atol=1e-5)


def test_without_readers_there_is_no_reference(make: Make, cases: ModuleType) -> None:
    terms = Pair("text", scoring=Sum(against=None))
    learner = make(cases.recipe(cases.stage(terms, reference=NoReference())))
    result = learner.train_step([cases.group(1)], 1, 1)
    assert result.applied and learner.references.twin is None
    assert abs(result.metrics["visual_reliance"]) > 1e-4  # of the media edge that no term reads


@pytest.mark.parametrize("stage", [0, 3])
def test_a_blended_reference_moves_every_n_steps(stage: int, make: Make, cases: ModuleType) -> None:
    """reference <- 0.75 reference + 0.25 policy after step 2, and not after step 1."""
    blended = Blended(alpha=0.25, every=2)
    learner = make(cases.recipe(cases.stage(cases.objective(), reference=blended)), zero_stage=stage)
    start = learner.policy.weights()
    learner.train_step([cases.group(1)], 1, 1)
    assert learner.reference_weights() is None
    learner.train_step([cases.group(1)], 1, 2)
    end, moved = learner.policy.weights(), learner.reference_weights()
    for name, value in moved.items():
        assert torch.allclose(value, 0.75 * start[name] + 0.25 * end[name], atol=1e-7), name
    assert any(not torch.equal(value, start[name]) for name, value in moved.items())
