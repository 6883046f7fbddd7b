"""The tiny byte-level checkpoint that JSON schemas and tool calls are tested on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import byte_model


def answer(checkpoint: Path, text: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    made = model.generate(**asked, max_new_tokens=100, do_sample=False)
    return tokenizer.decode(made[0][asked["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_spells_everything():
    """One token per byte, so that no grammar is out of reach."""
    tokenizer = byte_model.build_tokenizer()
    for text in ('{"a": [1, -2.5e3, null]}\n\t', "h\u00e9llo \u4e2d\U0001f600", "\x00\x7f"):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_tools_are_in_the_prompt_and_calls_in_the_history():
    tokenizer = byte_model.build_tokenizer()
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "weather ?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    text = tokenizer.apply_chat_template(
        chat, tools=[byte_model.WEATHER], tokenize=False, add_generation_prompt=True
    )
    assert json.dumps(byte_model.WEATHER["function"]["name"]) in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert text.endswith("<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n")


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(byte_model, "STEPS", 3)
    made = [
        (byte_model.write(tmp_path / name, seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1] != made[2]


def test_it_has_learned_to_answer_and_to_write_json(byte_checkpoint: Path):
    said = answer(byte_checkpoint, "apple bird")
    assert said.startswith("You said ")
    assert said.endswith(" words.")
    assert isinstance(json.loads(answer(byte_checkpoint, "apple bird json")), dict)
