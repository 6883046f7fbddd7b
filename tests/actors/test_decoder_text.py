"""The generator in torch on a text-only model, whose keys are shared by several heads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
from pipelines.decoding import Contrast, FromCheckpoint, FromReference
from pipelines.settings import EngineSettings
from pipelines.types import Canary, Prompt, WeightVersion


def random_model(folder: Path, seed: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from pipelines.worlds.glyphs.model import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def asked() -> Prompt:
    source = GlyphsSource(count=1, seed=3)
    return without_media(source.prompt(source.row(None, 0))[0])


async def started(folder: Path, model: Any) -> HuggingFaceGenerator:
    """A generator at version 0, which holds the model's weights."""
    generator = HuggingFaceGenerator("text", str(folder), EngineSettings(), Decoding(max_tokens=12))
    await generator.start([Canary(prompt=asked(), media={}, tokens=(8, 33))])
    names = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    manifest = {name: tensor_digest(array) for name, array in names.items()}
    own = await generator.logprob(asked(), {}, (8, 33))
    version = WeightVersion(attempt=1, number=0, step=0, stream="policy", manifest=manifest, canary=(own,))
    assert (await generator.adopt(version, names)).holds
    return generator


def read(model: Any, ids: Sequence[int], tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of an answer and what follows it, by one forward, [answer + 1, vocabulary]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 :].log_softmax(-1)


def test_a_model_that_reads_text_only(tmp_path: Path):
    """Sampling with a beginning, a contrast and attention, against a forward without a cache."""
    model, prompt = random_model(tmp_path, 0), asked()

    async def answers() -> tuple[Any, Any, HuggingFaceGenerator]:
        generator = await started(tmp_path, model)
        drawn = await generator.sample(prompt, {}, 4, 0, prefix=(8, 33), decoder=Contrast(cutoff=0.0))
        probes = await generator.probe(prompt, {}, [drawn[0].response], attention=True)
        return drawn, probes, generator

    drawn, [probe], generator = asyncio.run(answers())
    ids = generator.processing.encode(prompt, {}).input_ids
    for rollout in drawn:
        tokens = rollout.response.tokens
        own = read(model, ids, tokens)[range(len(tokens)), list(tokens)]
        np.testing.assert_allclose(rollout.behaviour.logps, own, atol=2e-4)
    assert probe.logps == pytest.approx(drawn[0].behaviour.logps, abs=1e-4) and probe.attention == ()


def test_another_checkpoint_answers(tmp_path: Path):
    """Its most likely tokens are drawn, the policy's log-probabilities are told; the reference, which started
    from the same folder, may go elsewhere without it."""
    policy, other = random_model(tmp_path / "policy", 0), random_model(tmp_path / "other", 1)
    theirs = FromCheckpoint(path=str(tmp_path / "other"), temperature=0.0)
    start = FromCheckpoint(path=str(tmp_path / "policy"), temperature=0.0)

    async def answers() -> tuple[Any, HuggingFaceGenerator]:
        generator = await started(tmp_path / "policy", policy)
        await generator.adopt_reference(dict(other.named_parameters()))
        cold = (theirs, start, FromReference(temperature=0.0))
        return [(await generator.sample(asked(), {}, 1, 0, decoder=d))[0] for d in cold], generator

    [drawn, own, reference], generator = asyncio.run(answers())
    ids, barred = generator.processing.encode(asked(), {}).input_ids, list(generator.processing.forbidden)
    for rollout, model in ((drawn, other), (own, policy)):
        tokens = rollout.response.tokens
        likeliest = read(model, ids, tokens)[:-1].index_fill(-1, torch.tensor(barred), -torch.inf).argmax(-1)
        assert tokens == tuple(likeliest.tolist())
        logps = read(policy, ids, tokens)[range(len(tokens)), list(tokens)]
        np.testing.assert_allclose(rollout.behaviour.logps, logps, atol=2e-4)
        assert rollout.behaviour.stream == "checkpoint"
    assert reference.response.tokens == drawn.response.tokens != own.response.tokens
