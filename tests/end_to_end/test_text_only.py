"""A model without eyes, of another architecture, on rows of text: trained, proved, resumed as an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.worlds.glyphs.model import build_tokenizer
from pipelines.worlds.glyphs.vocabulary import DIGITS

STEPS, GROUPS, RANK = 3, 4, 4
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 2
REWARD = f"""
DIGITS = {DIGITS}


def digits(prompt, response, row):
    assert prompt[-1]["role"] == "user" and row["wanted"] == "digits"
    return sum(word in DIGITS for word in response.split())
"""


def write_model(folder: Path) -> None:
    """A small random Llama whose output head is a matrix of its own.

    Not a Qwen2: for that configuration transformers 5.19 puts its own tokenizer in place of the one on disk.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,  # 32 wide: vLLM's CPU attention has no narrower kernel
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_model(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    words = ("name", "list", "count", "write", "repeat")
    rows = [{"prompt": f"{word} {n} digits .", "wanted": "digits"} for n in DIGITS for word in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "name": "text",
        "model": "model",
        "data": "rows.jsonl",
        "reward": "reward.py:digits",
        "output": str(folder / "runs"),
        "rollout": {"max_tokens": 16, "engine": {"max_model_len": 512}},
        "learner": {
            "steps": STEPS,
            "groups_per_step": GROUPS,
            "lr": 0.002,
            "warmup_steps": 0,
            "lora": {"rank": RANK, "alpha": 8, "targets": list(TARGETS)},
        },
        "checkpoint": {"every": 2},
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def first(align, home):
    """What the run left, read before it is resumed in the same folder."""
    run = align(home / "runs" / "text", home / "run.yaml")
    return run, run.summary


@pytest.fixture(scope="module")
def second(align, home, first):
    return align(home / "runs" / "text", home / "run.yaml", f"learner.steps={STEPS + 1}", "--resume")


def test_it_finishes_without_a_picture(first):
    run, summary = first
    assert summary["status"] == "finished"
    assert summary["audit"]["violated"] == []
    assert summary["comparisons"]["trained"] == STEPS * GROUPS
    assert all(row["media_digest"] is None for row in run.trained)
    assert all(row["score_chosen"] > row["score_rejected"] for row in run.trained)


def test_adapters_are_proved(first):
    run, summary = first
    assert summary["sync"]["verified"] == summary["sync"]["versions"] == STEPS + 1
    proofs = [e for e in run.lines("events.jsonl") if e["event"] == "proof"][: STEPS + 1]
    assert all(proof["holds"] for proof in proofs)
    assert proofs[0]["detail"]["bytes"]["tensors"] == 2 * len(TARGETS) * LAYERS  # an A and a B of each
    assert "proved" in {proof["canary_change"] for proof in proofs[1:]}


def test_only_what_the_adapter_covers_has_moved(first, home):
    from transformers import AutoModelForCausalLM

    checkpoint = home / "runs" / "text" / "checkpoints" / f"step-{STEPS}"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not model.config.tie_word_embeddings
    before = load_file(home / "model" / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    assert set(before) == set(after) >= {"lm_head.weight"}
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {n for n in before if n.endswith(".weight") and n.split(".")[-2] in TARGETS}


def test_the_merged_model_is_the_base_with_the_adapter(first, home):
    checkpoint = home / "runs" / "text" / "checkpoints" / f"step-{STEPS}"
    adapter = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    config = json.loads((checkpoint / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == RANK
    before = load_file(home / "model" / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    down, up = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    scaling = config["lora_alpha"] / config["r"]
    np.testing.assert_allclose(
        after[f"{name}.weight"], before[f"{name}.weight"] + scaling * up @ down, atol=1e-6
    )


def test_resuming_goes_on_from_the_adapter(first, second):
    """One more step than the run was started with; the generator proves the restored adapter first."""
    _, summary_before = first
    assert second.summary["status"] == "finished"
    assert second.summary["audit"]["violated"] == []
    assert [record["step"] for record in second.lines("metrics.jsonl")] == list(range(1, STEPS + 2))
    events = second.lines("events.jsonl")
    [at] = [i for i, event in enumerate(events) if event["event"] == "resumed"]
    proofs = [event for event in events[at:] if event["event"] == "proof"]
    assert [proof["version"] for proof in proofs] == [STEPS, STEPS + 1]
    assert all(proof["holds"] for proof in proofs)
    assert second.summary["comparisons"]["trained"] == summary_before["comparisons"]["trained"] + GROUPS


def test_the_resumed_adapter_moved_on(second):
    checkpoints = second.folder / "checkpoints"
    old, new = (
        load_file(checkpoints / f"step-{step}" / "adapter" / "adapter_model.safetensors")
        for step in (STEPS, STEPS + 1)
    )
    assert set(old) == set(new)
    moved = [float(np.abs(new[name] - old[name]).max()) for name in old]
    assert all(0 < change < 0.01 for change in moved), moved  # one step of Adam at lr 0.002, no fresh start


def test_all_weights_are_trained_and_proved_with_a_head_of_their_own(align, home):
    run = align(
        home / "runs" / "full", home / "run.yaml", "name=full", "learner.lora=null", "learner.steps=1"
    )
    proofs = [event for event in run.lines("events.jsonl") if event["event"] == "proof"]
    assert [proof["version"] for proof in proofs] == [0, 1]
    assert all(proof["holds"] for proof in proofs)
    before = load_file(home / "model" / "model.safetensors")
    after = load_file(run.folder / "checkpoints" / "step-1" / "model.safetensors")
    assert proofs[1]["detail"]["bytes"]["tensors"] == len(before)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert set(before) == set(after)
    assert not still
    assert not np.array_equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
