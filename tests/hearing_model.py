"""Makes a tiny chat model that hears: an audio encoder and a decoder over bytes, with random weights.

It says nothing sensible, but what it says depends on every sample, and two implementations must agree on it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests import byte_model

AUDIO_TOKENS = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
MEL_BINS = 16

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'audio' %}{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' }}
{%- elif part.type == 'text' %}{{- part.text }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def write(folder: Path, seed: int = 0) -> Path:
    """Save the model in Hugging Face layout; returns the folder."""
    import torch
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    tokenizer = byte_model.build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(AUDIO_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _untrained(tokenizer).save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=MEL_BINS)
    Qwen2AudioProcessor(features, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    _name_as_published(folder / "model.safetensors")
    return folder


def _name_as_published(weights: Path) -> None:
    """transformers reads the names of published checkpoints, but adds a `model.` when it writes them."""
    from safetensors.torch import load_file, save_file

    inner = "language_model.model."
    named = {name.replace(f"{inner}model.", inner): value for name, value in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})


def _untrained(tokenizer: Any) -> Any:
    from transformers import (
        GenerationConfig,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2Config,
    )
    from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

    hears = Qwen2AudioEncoderConfig(
        num_mel_bins=MEL_BINS,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        d_model=32,
        initializer_range=0.2,
    )
    speaks = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of size 32, the smallest that vLLM takes on CPU
        num_key_value_heads=2,
        max_position_embeddings=byte_model.CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    placeholder = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(audio_config=hears, text_config=speaks, audio_token_index=placeholder)
    model = Qwen2AudioForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
