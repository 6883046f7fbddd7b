"""The committed base model: it loads, it is small, it sees, and it hallucinates as its card says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.worlds.glyphs import BASE_MODEL
from pipelines.worlds.glyphs.measure import generator, measure_captions, measure_questions
from pipelines.worlds.glyphs.model import CHAT_TEMPLATE, build_tokenizer


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_pretrained(BASE_MODEL), AutoProcessor.from_pretrained(BASE_MODEL)


def test_it_is_small_and_complete() -> None:
    names = {path.name for path in BASE_MODEL.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) <= 6 * 2**20


def test_it_is_what_the_code_builds(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.dtype == torch.float32
    assert processor.chat_template.strip() == CHAT_TEMPLATE.strip()
    assert processor.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.config.text_config.hidden_size // model.config.text_config.num_attention_heads >= 32


def test_greedy_decoding_hallucinates_although_it_sees(loaded: tuple[Any, Any]) -> None:
    answer = generator(*loaded)
    captions = measure_captions(answer, 200, seed=11)
    assert captions["chair_i"] >= 0.35
    assert captions["object_recall"] >= 0.75
    for kind in ("random", "popular", "adversarial"):
        asked = measure_questions(answer, kind, 100, seed=11)
        assert asked["accuracy"] >= 0.65
        assert 0.3 <= asked["yes_ratio"] <= 0.7


def test_sampling_leaves_the_invented_object_out_at_times(loaded: tuple[Any, Any]) -> None:
    """Without such samples there would be no preference to learn from."""
    sampled = measure_captions(generator(*loaded, temperature=1.0), 200, seed=11)
    greedy = measure_captions(generator(*loaded), 200, seed=11)
    assert sampled["chair_s"] < greedy["chair_s"] - 0.1
