"""The generator in torch on a text-only model, whose keys are shared by several heads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.canaries import without_media
from actors.decoder import HuggingFaceGenerator
from actors.holder import Decoding
from actors.proof import tensor_digest
from pipelines.data.glyphs import GlyphsSource
from pipelines.decoding import Contrast
from pipelines.settings import EngineSettings
from pipelines.types import Canary, WeightVersion


def test_a_model_that_reads_text_only(tmp_path: Path):
    """Sampling with a beginning, a contrast and attention, against a forward without a cache."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from pipelines.worlds.glyphs.model import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = HuggingFaceGenerator("text", str(tmp_path), EngineSettings(), Decoding(max_tokens=12))
    source = GlyphsSource(count=1, seed=3)
    prompt = without_media(source.prompt(source.row(None, 0))[0])

    async def answers() -> tuple[Any, Any]:
        await generator.start([Canary(prompt=prompt, media={}, tokens=(8, 33))])
        names = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        manifest = {name: tensor_digest(array) for name, array in names.items()}
        own = await generator.logprob(prompt, {}, (8, 33))
        version = WeightVersion(
            attempt=1, number=0, step=0, stream="policy", manifest=manifest, canary=(own,)
        )
        assert (await generator.adopt(version, names)).holds
        drawn = await generator.sample(prompt, {}, 4, 0, prefix=(8, 33), decoder=Contrast(cutoff=0.0))
        return drawn, await generator.probe(prompt, {}, [drawn[0].response], attention=True)

    drawn, [probe] = asyncio.run(answers())
    ids = generator.processing.encode(prompt, {}).input_ids
    for rollout in drawn:
        tokens = rollout.response.tokens
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 :]
        own = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
        np.testing.assert_allclose(rollout.behaviour.logps, own, atol=2e-4)
    assert probe.logps == pytest.approx(drawn[0].behaviour.logps, abs=1e-4) and probe.attention == ()
