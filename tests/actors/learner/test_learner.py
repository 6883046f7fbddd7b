from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actors.checkpoints import weights_digest
from actors.learner import Learner, NotFinite
from actors.sight import BlindLearner, SightMismatch
from pipelines.objectives.base import Reads, Term, per_comparison
from pipelines.objectives.pair import Pair
from pipelines.settings import LearnerSettings, LoraSettings
from pipelines.types import Canary, Group, Response

Make = Callable[..., Any]


def _plain_gradients(model: Path, groups: list[Group], processing: Any) -> dict[str, np.ndarray]:
    """The objective of `cases` at the starting point, written out over full logits, one row at a time.

    There log pi equals log pi_ref, so with r = log pi - log pi_ref (0, but with a gradient) a pair gives
    -log sigmoid(beta (r_w - r_l) - margin) and the anchor -log sigmoid(beta r_w), averaged by edge weight.
    """
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model)
    reference = AutoModelForImageTextToText.from_pretrained(model)

    def logp(net: Any, comparison: Any, cell: int, media: Any) -> torch.Tensor:
        candidate = comparison.candidates[cell]
        encoded = processing.encode(comparison.prompts[candidate.prompt], media)
        tokens = comparison.responses[candidate.response].tokens
        ids = torch.tensor([[*encoded.input_ids, *tokens]])
        images: dict[str, Any] = {}
        if encoded.pixel_values is not None:
            images = {"pixel_values": encoded.pixel_values, "image_grid_thw": encoded.image_grid_thw}
            images["mm_token_type_ids"] = (ids == processing.image_token).int()
        table = net(input_ids=ids, **images).logits[0].log_softmax(-1)
        start = len(encoded.input_ids) - 1
        return torch.stack([table[start + k, token] for k, token in enumerate(tokens)]).sum()

    sums = {"text": 0.0, "media": 0.0, "anchor": 0.0}
    weights = {"text": 0.0, "media": 0.0, "anchor": 0.0}
    parts: dict[str, Any] = dict(sums)
    for group in groups:
        for comparison in group.comparisons:
            with torch.no_grad():
                old = [logp(reference, comparison, i, group.media) for i in range(len(comparison.candidates))]
            new = [logp(policy, comparison, i, group.media) for i in range(len(comparison.candidates))]
            rho = [a - b for a, b in zip(new, old, strict=True)]
            for edge in comparison.preferences:
                gap = 0.1 * (rho[edge.winner] - rho[edge.loser]) - edge.margin
                parts[edge.name] = parts[edge.name] - edge.weight * torch.nn.functional.logsigmoid(gap)
                weights[edge.name] += edge.weight
                if edge.name == "text":
                    log = torch.nn.functional.logsigmoid(0.1 * rho[edge.winner])
                    parts["anchor"] = parts["anchor"] - edge.weight * log
                    weights["anchor"] += edge.weight
    loss: Any = sum(
        scale * parts[name] / weights[name]
        for name, scale in (("text", 1.0), ("media", 0.5), ("anchor", 1.0))
    )
    loss.backward()
    return {
        name: p.grad.numpy() if p.grad is not None else np.zeros(0) for name, p in policy.named_parameters()
    }


def _close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(got) == set(expected)
    scale = max(float(np.abs(grad).max()) for grad in expected.values())
    assert scale > 0.1
    for name, grad in expected.items():
        assert float(np.abs(got[name] - grad).max()) <= 1e-5 * scale, name


@pytest.mark.parametrize(("micro_batch", "largest", "stage"), [(1, 4, 0), (3, 4, 2), (4, 9, 3)])
def test_gradients_equal_a_plain_computation(
    micro_batch: int, largest: int, stage: int, make: Make, model: Path, cases: ModuleType
) -> None:
    """Whatever the micro-batch, the padding of the step and the sharding."""
    groups = [cases.group(1), cases.group(2, damaged=False), cases.group(3, images=False), cases.group(4)]
    learner = make(micro_batch=micro_batch, zero_stage=stage)
    learner.train_step(groups, largest, 1)
    _close(learner.gradients, _plain_gradients(model, groups, learner.processing))


def test_the_first_step_starts_at_the_reference_and_learning_moves_the_margins(
    make: Make, cases: ModuleType
) -> None:
    learner = make(warmup_steps=2)
    groups = [cases.group(seed) for seed in range(1, 5)]
    first = learner.train_step(groups, 4, 1, published=2)
    assert first.applied
    assert first.metrics["margin/text"] == pytest.approx(0, abs=1e-4)
    assert first.metrics["loss/pair_text"] == pytest.approx(math.log(2), abs=1e-5)
    assert first.metrics["lr"] == pytest.approx(5e-4)
    assert first.metrics["reward"] == pytest.approx(2.5)  # mean of the groups' facts 1, 2, 3, 4
    assert (first.metrics["lag_max"], first.metrics["groups"], first.metrics["comparisons"]) == (2, 4, 4)
    tokens = sum(len(r.tokens) for group in groups for c in group.comparisons for r in c.responses)
    assert first.metrics["tokens"] == tokens
    second = learner.train_step(groups, 4, 2)
    assert second.metrics["lr"] == pytest.approx(1e-3)
    assert second.metrics["margin/text"] > 0.1
    assert second.metrics["loss"] < first.metrics["loss"]
    assert len(second.margins) == 4 and set(second.margins[0]) == {"text", "media"}
    mean = float(np.mean([margins["media"] for margins in second.margins]))
    assert mean == pytest.approx(second.metrics["margin/media"], abs=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_warm_up_sets_the_rate_of_the_update(stage: int, make: Make, cases: ModuleType) -> None:
    """Adam's first update is lr * g / (|g| + eps): the learning rate wherever the gradient is not tiny."""
    learner = make(zero_stage=stage, warmup_steps=4, lr=1e-3)
    before = learner.export()
    learner.train_step([cases.group(1)], 1, 1)
    moved = max(float(np.abs(value - before[name]).max()) for name, value in learner.export().items())
    assert moved == pytest.approx(2.5e-4, rel=1e-2)


def test_a_step_without_comparisons_changes_nothing(make: Make) -> None:
    learner = make()
    before = learner.export()
    result = learner.train_step([], 0, 1)
    assert not result.applied and result.metrics["comparisons"] == 0
    assert all(np.array_equal(before[name], value) for name, value in learner.export().items())


def test_a_step_whose_comparisons_say_nothing_to_the_objective_changes_nothing(
    make: Make, cases: ModuleType
) -> None:
    """Not even by momentum: its terms read media edges, and no prompt has an image."""
    learner = make(cases.recipe(cases.stage(Pair("media"))))
    learner.train_step([cases.group(1)], 1, 1)
    before = learner.export()
    result = learner.train_step([cases.group(1, images=False)], 1, 2)
    assert not result.applied and result.margins == ({},)
    assert all(np.array_equal(before[name], value) for name, value in learner.export().items())


# -- sight --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [True, False])
def test_a_learner_whose_processor_drops_pixel_values_stops(
    damaged: bool, make: Make, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make()
    encode = learner.processing.encode
    monkeypatch.setattr(
        learner.processing,
        "encode",
        lambda prompt, media: replace(encode(prompt, media), pixel_values=None, image_grid_thw=None),
    )
    with pytest.raises(BlindLearner, match="no pixel_values reach the model"):
        learner.train_step([cases.group(1, damaged=damaged)], 1, 1)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_learner_whose_pixels_say_nothing_stops_before_it_learns(
    damaged: bool, make: Make, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With media edges by their own damage, without them by a gray picture."""
    learner = make()
    encode = learner.processing.encode

    def black(prompt: Any, media: Any) -> Any:
        encoded = encode(prompt, media)
        return replace(encoded, pixel_values=torch.zeros_like(encoded.pixel_values))

    monkeypatch.setattr(learner.processing, "encode", black)
    before = learner.export()
    with pytest.raises(BlindLearner, match="the learner is blind"):
        learner.train_step([cases.group(1, damaged=damaged), cases.group(2, damaged=damaged)], 2, 1)
    assert all(np.array_equal(before[name], value) for name, value in learner.export().items())


def test_reliance_on_images_is_logged_without_media_edges(make: Make, cases: ModuleType) -> None:
    result = make().train_step([cases.group(1, damaged=False)], 1, 1)
    assert abs(result.metrics["visual_reliance"]) > 1e-4


def test_text_alone_is_not_blindness(make: Make, cases: ModuleType) -> None:
    result = make().train_step([cases.group(1, images=False)], 1, 1)
    assert result.applied and "visual_reliance" not in result.metrics


def test_an_exchanged_picture_is_a_mismatch(make: Make, cases: ModuleType) -> None:
    learner, group = make(), cases.group(1)
    first, second = group.media
    swapped = replace(group, media={first: group.media[second], second: group.media[second]})
    with pytest.raises(SightMismatch, match="row-1"):
        learner.train_step([swapped], 1, 1)
    assert learner.digest_mismatches == 1


def test_an_answer_with_a_placeholder_is_refused(make: Make, cases: ModuleType) -> None:
    learner, group = make(), cases.group(1)
    comparison = group.comparisons[0]
    tokens = (9, learner.processing.image_token, 2)
    bad = replace(comparison, responses=(Response(tokens=tokens, text="a"), comparison.responses[1]))
    with pytest.raises(ValueError, match=r"<\|image_pad\|>"):
        learner.train_step([replace(group, comparisons=(bad,))], 1, 1)


# -- numbers that are not finite ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Term):
    """A term whose value is `factor` times the policy's log-probability."""

    on: str = "text"
    factor: float = math.inf

    def weight(self, reads: Reads) -> torch.Tensor:
        return torch.ones(reads.size)

    def value(self, reads: Reads) -> torch.Tensor:
        table = reads.edges[self.on]
        return per_comparison(reads.logps["policy"][table.winner] * self.factor, table.owner, reads.size)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_steps_that_are_not_finite_change_nothing_and_end_the_run_after_three(
    stage: int, make: Make, cases: ModuleType
) -> None:
    learner = make(cases.recipe(cases.stage(Broken("text"))), zero_stage=stage)
    before = learner.export()
    for step in (1, 2, 3):
        result = learner.train_step([cases.group(1)], 1, step)
        assert not result.applied
        assert "loss" not in result.metrics and result.metrics["skipped_steps"] == step
        named = "comparison group-1/0, prompt 'row-1': the term broken_text is -inf"
        assert result.bad == (named,) and result.metrics["bad_numbers"] == 1
    assert all(np.array_equal(before[name], value) for name, value in learner.export().items())
    with pytest.raises(NotFinite, match=r"4 steps in a row.*The first: comparison group-1/0, prompt 'row-1'"):
        learner.train_step([cases.group(1)], 1, 4)


# -- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 3])
def test_exported_names_and_values_are_those_of_the_checkpoint(stage: int, make: Make, model: Path) -> None:
    learner = make(zero_stage=stage)
    tensors, stored = learner.export(), load_file(model / "model.safetensors")
    assert set(tensors) == set(stored) and "lm_head.weight" not in tensors  # the head is tied
    assert all(np.array_equal(tensors[name], value) for name, value in stored.items())
    manifest = learner.manifest(tensors)
    assert manifest["model.norm.weight"].shape == stored["model.norm.weight"].shape
    changed = {**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1e-6}
    moved = learner.manifest(changed)
    assert [name for name in manifest if manifest[name] != moved[name]] == ["model.norm.weight"]


def test_bfloat16_travels_as_its_bits(make: Make, cases: ModuleType) -> None:
    learner = make(dtype="bfloat16", zero_stage=2)
    assert learner.train_step([cases.group(1)], 1, 1).applied
    tensors = learner.export()
    assert {str(array.dtype) for array in tensors.values()} == {"uint16"}
    assert {digest.dtype for digest in learner.manifest(tensors).values()} == {"bfloat16"}
    rotary = [b for name, b in learner.policy.model.named_buffers() if "inv_freq" in name]
    assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)


def test_canaries_follow_the_weights(make: Make, cases: ModuleType) -> None:
    learner, group = make(), cases.group(1)
    prompt, tokens = group.comparisons[0].prompts[0], group.comparisons[0].responses[0].tokens
    bare = cases.group(1, images=False).comparisons[0].prompts[0]
    canaries = [
        Canary(prompt=prompt, media=group.media, tokens=tokens),
        Canary(prompt=bare, media={}, tokens=tokens),
    ]
    before = learner.canary(canaries)
    assert before == learner.canary(canaries) and before[0] != before[1]
    learner.train_step([group], 1, 1)
    assert learner.canary(canaries)[0] > before[0] + 0.01  # the answer was the chosen one


@pytest.mark.parametrize("changes", [{"zero_stage": 2}, {"zero_stage": 3, "lora": LoraSettings()}])
def test_resuming_continues_bit_for_bit(
    changes: dict[str, Any], make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    groups = [cases.group(seed) for seed in (1, 2)]
    learner = make(**changes, warmup_steps=4)
    for step in (1, 2):
        learner.train_step(groups, 2, step)
    learner.save(tmp_path)
    last = learner.train_step(groups, 2, 3)
    again = make(**changes, warmup_steps=4)
    again.load(tmp_path)
    repeated = again.train_step(groups, 2, 3)
    for key in ("loss", "lr", "grad_norm", "margin/text"):
        assert repeated.metrics[key] == last.metrics[key], key
    expected = learner.export()
    assert all(np.array_equal(expected[name], value) for name, value in again.export().items())


def test_other_settings_cannot_take_over_the_optimizer(make: Make, tmp_path: Path) -> None:
    make(zero_stage=2).save(tmp_path)
    with pytest.raises(ValueError, match="zero_stage: saved with 2, now 0"):
        make(zero_stage=0).load(tmp_path)


def test_a_saved_checkpoint_loads_anywhere_and_trains_on(
    make: Make, cases: ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    learner = make(zero_stage=2)
    learner.train_step([cases.group(1)], 1, 1)
    learner.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template
    inside = dict(learner.policy.model.named_parameters())
    assert all(torch.equal(value, inside[name]) for name, value in loaded.named_parameters())
    tensors = learner.export()
    assert all(np.array_equal(tensors[k], v) for k, v in load_file(tmp_path / "model.safetensors").items())
    Learner(tmp_path, learner.settings, cases.recipe()).train_step([cases.group(1)], 1, 1)


# -- adapter ------------------------------------------------------------------------------------------------


def test_an_adapter_learns_while_the_reference_stays(
    make: Make, model: Path, cases: ModuleType, tmp_path: Path
) -> None:
    learner = make(lora=LoraSettings(), zero_stage=2, lr=1e-2)
    group = cases.group(1)
    first = learner.train_step([group], 1, 1)
    assert first.metrics["margin/text"] == pytest.approx(0, abs=1e-5)  # B starts at zero
    assert learner.train_step([group], 1, 2).metrics["margin/text"] > 0.1
    tensors = learner.export()
    assert len(tensors) == 3 * 7 * 2  # layers x targets x (A, B); the vision tower has no adapter
    assert all(".language_model." in name and "visual" not in name for name in tensors)
    learner.save(tmp_path)
    stored = load_file(model / "model.safetensors")
    merged = load_file(tmp_path / "model.safetensors")
    changed = {name for name, value in stored.items() if not np.array_equal(value, merged[name])}
    assert changed == {name for name in stored if name.startswith("model.layers.") and "proj.weight" in name}


def test_merged_model_and_adapter_compute_the_same(
    make: Make, model: Path, cases: ModuleType, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    learner = make(lora=LoraSettings(), zero_stage=3, lr=1e-2)
    for step in (1, 2):
        learner.train_step([cases.group(1)], 1, step)
    learner.save(tmp_path)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    recorded = json.loads((tmp_path / "adapter" / "base.json").read_text())["weights"]
    assert recorded == weights_digest(model) != weights_digest(tmp_path)
    ids = torch.tensor([[9, 10, 11, 12]])
    with torch.no_grad():
        plain = AutoModelForImageTextToText.from_pretrained(model)(input_ids=ids).logits
        one, other = merged(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, plain, atol=1e-2)


def test_a_text_only_model_trains(model: Path, cases: ModuleType, tmp_path: Path) -> None:
    import shutil

    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=118, **sizes, **heads)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, tmp_path / name)
    learner = Learner(tmp_path, LearnerSettings(zero_stage=2, warmup_steps=0, lr=1e-3), cases.recipe())
    groups = [cases.group(seed, images=False) for seed in (1, 2)]
    first, second = (learner.train_step(groups, 2, step).metrics["loss"] for step in (1, 2))
    assert second < first
    assert set(learner.export()) == set(load_file(tmp_path / "model.safetensors"))
